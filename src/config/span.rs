//! Lengths of time as people write them: `"24 h"`, `"90 min"`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Length of time, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

const UNITS: [(&str, u64); 4] = [("s", 1), ("min", 60), ("h", 3_600), ("d", 86_400)];
/// Longest time: nobody means more, and an engine's times end earlier.
const LONGEST: u64 = 365 * 86_400;

impl Span {
    /// Time of this many hours.
    pub const fn hours(n: u64) -> Self {
        Self(Duration::from_hours(n))
    }

    /// The length.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Reads a length of time such as `24 h`. Fails with what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a valid length of time; write \"24 h\", \"90 min\" or \"0 s\"");
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = text[..split].parse().map_err(|_| wrong())?;
        let unit = text[split..].trim();
        let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let seconds = number.checked_mul(*seconds).filter(|&s| s <= LONGEST).ok_or_else(wrong)?;
        Ok(Self(Duration::from_secs(seconds)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.as_secs();
        let (unit, seconds) =
            UNITS.iter().rev().find(|(_, seconds)| s > 0 && s.is_multiple_of(*seconds)).unwrap_or(&UNITS[0]);
        write!(f, "{} {unit}", s / seconds)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, seconds, again) in
            [("24 h", 86_400, "1 d"), ("90min", 5_400, "90 min"), ("0 s", 0, "0 s"), ("36 h", 129_600, "36 h")]
        {
            let span = Span::parse(text).expect("valid");
            assert_eq!((span.get().as_secs(), span.to_string().as_str()), (seconds, again), "{text}");
            assert_eq!(Span::parse(again), Ok(span));
        }
        for text in ["", "24", "h", "1.5 h", "-1 h", "2 weeks", "99999999999999999999 s", "400 d"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
    }
}
