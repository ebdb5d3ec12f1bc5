//! Ways to start a probe, of which vendors have some each.

use std::path::Path;

use labd_gpu::line::Source;

use super::program::{Launch, Program};

/// Launch of a program that is a probe.
pub(in crate::gpus) fn launch(source: Source, program: Program) -> Launch {
    Launch { source, program, args: Vec::new(), env: Vec::new() }
}

/// Launch of labd itself as a probe, where asking needs no library.
pub(in crate::gpus) fn labd(source: Source, word: &str) -> Launch {
    Launch { args: vec!["probe".into(), word.into()], ..launch(source, Program::Labd) }
}

/// Embedded executable; in a development build the one that cargo put beside labd.
pub(in crate::gpus) fn embedded(name: &'static str, bytes: &'static [u8]) -> Option<Program> {
    let beside = std::env::current_exe().ok().and_then(|labd| Some(labd.parent()?.to_owned()));
    program(name, bytes, beside.as_deref())
}

fn program(name: &'static str, bytes: &'static [u8], beside: Option<&Path>) -> Option<Program> {
    if !bytes.is_empty() {
        return Some(Program::Embedded { name, bytes });
    }
    beside.map(|dir| dir.join(name)).filter(|path| path.is_file()).map(Program::Path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_embedded_comes_before_what_lies_beside_labd() {
        let dir = tempfile::tempdir().expect("a directory");
        let name = "labd-probe-nvidia";
        assert_eq!(program(name, b"", Some(dir.path())), None);
        assert_eq!(program(name, b"", None), None);
        let path = dir.path().join(name);
        fs::write(&path, "").expect("a file");
        assert_eq!(program(name, b"", Some(dir.path())), Some(Program::Path(path)));
        assert_eq!(program(name, b"ELF", Some(dir.path())), Some(Program::Embedded { name, bytes: b"ELF" }));
    }
}
