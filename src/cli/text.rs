//! Output to the terminal: the only place that writes to stdout and stderr.

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

use super::{args::Color, exit::Failure};
use crate::text::Screen;

/// Width of tables where there is no terminal to ask.
const WIDTH: usize = 80;

/// Style of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) color: bool,
    pub(super) width: usize,
}

/// Standard output.
pub(super) struct Out {
    style: Style,
    terminal: bool,
    drawn: bool,
    screen: Screen,
}

impl Out {
    pub(super) fn new(color: Color) -> Self {
        let terminal = io::stdout().is_terminal();
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        };
        Self { style: Style { color, width: width() }, terminal, drawn: false, screen: Screen::default() }
    }

    pub(super) const fn style(&self) -> Style {
        self.style
    }

    pub(super) const fn is_terminal(&self) -> bool {
        self.terminal
    }

    pub(super) fn line(&mut self, line: &str) -> Result<(), Failure> {
        self.text(&format!("{line}\n"))
    }

    /// Prints text of ours, in which names and reasons of others may be.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Failure> {
        if self.terminal { self.bytes(Screen::whole(text).as_bytes()) } else { self.bytes(text.as_bytes()) }
    }

    /// Prints a piece of what others wrote: as it is for a file or a program, without what steers for a terminal.
    pub(super) fn theirs(&mut self, piece: &[u8]) -> Result<(), Failure> {
        if !self.terminal {
            return self.bytes(piece);
        }
        let shown = self.screen.feed(piece);
        self.bytes(shown.as_bytes())
    }

    /// Ends what others wrote.
    pub(super) fn theirs_end(&mut self) -> Result<(), Failure> {
        let shown = self.screen.end();
        self.bytes(shown.as_bytes())
    }

    /// Prints bytes as they are.
    #[expect(clippy::unused_self, reason = "whoever writes has been given the output")]
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()?;
        Ok(())
    }

    pub(super) fn json(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        // Plain data always serialises.
        let text = serde_json::to_string_pretty(value).unwrap_or_default();
        self.line(&text)
    }

    /// Replaces what was drawn before, on a terminal.
    pub(super) fn redraw(&mut self, text: &str) -> Result<(), Failure> {
        let start = if self.drawn { "\x1b[H" } else { "\x1b[2J\x1b[H\x1b[?25l" };
        self.drawn = true;
        // Each line is cleared to its end, then everything below: no flicker.
        let text = Screen::whole(text).replace('\n', "\x1b[K\n");
        self.bytes(format!("{start}{text}\x1b[J").as_bytes())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        if self.drawn {
            restore_terminal();
        }
    }
}

/// Shows the cursor again.
pub(super) fn restore_terminal() {
    let mut stdout = io::stdout();
    if stdout.is_terminal() {
        let _ = stdout.write_all(b"\x1b[?25h");
        let _ = stdout.flush();
    }
}

/// Asks a person something on stderr, which is not what a script reads.
pub(super) fn ask(question: &str) {
    let mut stderr = io::stderr();
    let _ = stderr.write_all(question.as_bytes());
    let _ = stderr.flush();
}

/// Prints one line on stderr.
pub(super) fn complain(line: &str) {
    // When stderr is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "labd: {}", Screen::whole(line));
}

/// Width of the terminal as the shell says, at least 80: narrower ones wrap, which loses nothing.
fn width() -> usize {
    std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok()).unwrap_or(WIDTH).clamp(WIDTH, 200)
}
