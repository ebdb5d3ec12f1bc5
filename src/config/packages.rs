//! The lab's own Python packages: what may be in `[images.build] packages` and in a requirements file, and the text
//! that becomes part of the image. Pure but for [`read`].

use std::path::Path;

/// Longest text in bytes. It travels to the engine as a build argument, which the kernel bounds at 128 KiB.
pub const LONGEST: usize = 64 << 10;

/// Options of a requirements file that name other files, which a build does not have.
const FILES: [&str; 6] = ["-r", "--requirement", "-c", "--constraint", "-e", "--editable"];

/// Checks one entry of `packages`. Fails with what is wrong and what would be right.
pub fn check_entry(entry: &str) -> Result<(), String> {
    let text = entry.trim();
    if text.is_empty() || text.chars().any(char::is_control) || text.starts_with(['-', '#']) {
        return Err(format!("{entry:?} is not a package; use one line such as \"lightning==2.5.0\""));
    }
    check_source(text)
}

/// Checks what both kinds have in common: only packages of an index or a URL, without credentials.
fn check_source(text: &str) -> Result<(), String> {
    if text.starts_with(['/', '.', '~']) || text.to_ascii_lowercase().contains("file:") {
        return Err(format!(
            "{text:?} is a path of this machine, which the build does not see; name a package or a URL"
        ));
    }
    for (before, after) in text.match_indices("://").map(|(at, _)| (&text[..at], &text[at + 3..])) {
        let authority = after.split(['/', '?', '#', ' ']).next().unwrap_or_default();
        if authority.contains('@') && !before.ends_with("ssh") {
            return Err("an address holds credentials, and everyone could read them in the image; \
                 use a mirror that asks for no login"
                .to_owned());
        }
    }
    Ok(())
}

/// Reads a requirements file; nothing without one. Fails in one line that names the file, and the line where one is wrong.
pub fn read(path: Option<&Path>) -> Result<String, String> {
    let Some(path) = path else { return Ok(String::new()) };
    let wrong = |text: String| format!("`images.build.requirements`: {}{text}", path.display());
    let text = std::fs::read_to_string(path)
        .map_err(|e| wrong(format!(" cannot be read ({e}); name a requirements file that labd can read")))?;
    parse(&text).map_err(|(line, text)| wrong(format!("{}: {text}", line.map(|n| format!(":{n}")).unwrap_or_default())))
}

/// Lines of a requirements file that count, so that a comment does not rebuild an image. Fails with the line's number,
/// counted from 1, and what is wrong with it.
fn parse(text: &str) -> Result<String, (Option<usize>, String)> {
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_end();
        let first = line.split(|c: char| c.is_whitespace() || c == '=').find(|w| !w.is_empty()).unwrap_or_default();
        if line.trim_start().starts_with('#') || first.is_empty() {
            continue;
        }
        let at = |text| (Some(number + 1), text);
        // `-rbase.txt` is the same to pip.
        if FILES.iter().any(|option| first == *option || !option.starts_with("--") && first.starts_with(option)) {
            return Err(at(format!("{first:?} names another file, which the build does not have; put its lines here")));
        }
        if line.chars().any(|c| c.is_control() && c != '\t') {
            return Err(at("holds control characters; a requirements file is plain text".to_owned()));
        }
        check_source(line.trim_start()).map_err(at)?;
        lines.push(line);
    }
    let text = lines.join("\n");
    if text.len() > LONGEST {
        return Err((None, format!(" has more than {} KiB of requirements; put fewer into the image", LONGEST >> 10)));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_package() {
        for entry in [
            "lightning",
            "torch==2.9.0+cpu",
            "boto3>=1.40,<2 ; python_version > '3.12'",
            "x @ https://host/x-1-py3-none-any.whl",
            "git+ssh://git@github.com/a/b",
        ] {
            assert_eq!(check_entry(entry), Ok(()), "{entry}");
        }
        for entry in ["", "  ", "-r x", "--index-url=https://x", "# no", "a\nb", "./x", "/srv/x.whl", "x @ file:///x"] {
            assert!(check_entry(entry).is_err(), "{entry}");
        }
        let said = check_entry("git+https://hunter2@github.com/a/b").expect_err("credentials");
        assert!(said.contains("credentials") && !said.contains("hunter2"), "{said}");
    }

    #[test]
    fn of_a_file_what_counts_is_kept_and_what_the_build_lacks_is_refused_by_its_line() {
        let text =
            "# the course\r\n\r\nlightning==2.5.0 # fast \\\n--extra-index-url https://x/simple\n  --hash=sha256:1\n";
        assert_eq!(
            parse(text).as_deref(),
            Ok("lightning==2.5.0 # fast \\\n--extra-index-url https://x/simple\n  --hash=sha256:1")
        );
        assert_eq!(parse("").as_deref(), Ok(""));
        for line in ["-r base.txt", "-rbase.txt", "--requirement=b", "-c c.txt", "-e .", "./x.whl", "a\u{1b}b"] {
            assert_eq!(parse(&format!("a\n{line}\n")).expect_err(line).0, Some(2), "{line}");
        }
        assert!(parse("--extra-index-url https://u:p@x/simple").is_err());
        assert!(parse(&"a\n".repeat(LONGEST)).is_err());
    }

    #[test]
    fn a_file_that_cannot_be_read_names_itself_and_its_setting() {
        let said = read(Some(Path::new("/nowhere/requirements.txt"))).expect_err("missing");
        assert!(said.contains("`images.build.requirements`: /nowhere/requirements.txt cannot be read"), "{said}");
        assert_eq!(read(None).as_deref(), Ok(""));
    }
}
