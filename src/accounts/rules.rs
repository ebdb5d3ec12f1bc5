//! Rules for names and passwords. Pure.

use super::AccountError;
use crate::{secret::Secret, text};

/// Most characters of a name.
const NAME_MOST: usize = 64;
/// Fewest characters of a password. Length is the one rule that helps (NIST SP 800-63B); the rate limit does the rest.
const PASSWORD_LEAST: usize = 10;
/// Most bytes of a password: room for any sentence, and no work made of a megabyte.
const PASSWORD_MOST: usize = 1_000;

/// Whether an account may have this name. It stands in JSON, in tables and in URLs, and as an argument of a command.
pub(super) fn check_name(name: &str) -> Result<(), AccountError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    let fits = (1..=NAME_MOST).contains(&name.len()) && name.chars().all(allowed) && !name.starts_with(['-', '.']);
    if fits { Ok(()) } else { Err(AccountError::Name(text::clip(name, NAME_MOST))) }
}

/// Whether the account of this name may have this password.
pub(super) fn check_password(name: &str, password: &Secret) -> Result<(), AccountError> {
    let password = password.expose();
    if password.chars().count() < PASSWORD_LEAST {
        Err(AccountError::PasswordTooShort)
    } else if !may_be_one(password) {
        Err(AccountError::PasswordTooLong)
    } else if password.eq_ignore_ascii_case(name) {
        Err(AccountError::PasswordIsName)
    } else {
        Ok(())
    }
}

/// Whether a text is short enough to be anybody's password.
pub(super) fn may_be_one(password: &str) -> bool {
    password.len() <= PASSWORD_MOST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_refused() {
        let long = "a".repeat(65);
        let refused =
            ["", "-a", ".a", "a b", "a/b", "a\nb", "ädä", "a:b", "a'b", "\u{202e}abc", "а", "--help", long.as_str()];
        for name in refused {
            let error = check_name(name).expect_err(name).to_string();
            assert!(error.contains("1 to 64") && !error.contains('\n') && error.len() < 300, "{error}");
        }
        for name in ["a", "ada", "Ada.Lovelace", "ada@lab.example", "_x-1", "@a", "7", &long[1..]] {
            check_name(name).expect(name);
        }
    }

    #[test]
    fn passwords_that_are_refused() {
        let long = "x".repeat(1_001);
        for (password, why) in
            [("", "10 characters"), ("ninechars", "10 characters"), (&long, "1,000 bytes"), ("Ada@Lab.Example", "name")]
        {
            let error = check_password("ada@lab.example", &Secret::new(password)).expect_err("refused").to_string();
            assert!(error.contains(why) && (password.is_empty() || !error.contains(password)), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        for password in ["ten chars!", "ääääääääää", &long[1..], "ada@lab.example!"] {
            check_password("ada@lab.example", &Secret::new(password)).expect("allowed");
        }
    }
}
