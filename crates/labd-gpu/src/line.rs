//! Lines of the protocol between a probe and labd: the probe prints one JSON value per line on its standard output, at
//! least one a second, and ends when that cannot be written any more.
//!
//! ```text
//! {"hello":{"source":"nvml","driver":"570.124.06","library":"12.570.124.06"}}
//! {"inventory":[{"id":"GPU-…","vendor":"nvidia",…}]}      again whenever it changes
//! {"readings":[{"id":"GPU-…","utilisation_percent":97.0,…}]}      once a second
//! {"trouble":{"code":"NVML_ERROR_LIB_RM_VERSION_MISMATCH","text":"Driver/library version mismatch"}}
//! ```

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use crate::{Device, Reading};

/// Line of the protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// First line: the source of the rest.
    Hello(Hello),
    /// Inventory: all GPUs that there are now.
    Inventory(Vec<Device>),
    /// Readings of the GPUs.
    Readings(Vec<Reading>),
    /// Reason why there are none. The probe tries again by itself, or ends: a library that is missing now may come
    /// later.
    Trouble(Trouble),
}

/// Source of a probe's answers, with its versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The source.
    pub source: Source,
    /// Version of the kernel's driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Version of the vendor's library; of one that is there and is not asked, with the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub library: Option<String>,
}

/// Source that a probe asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// NVIDIA's library.
    Nvml,
    /// NVIDIA's command, where the library is missing.
    NvidiaSmi,
    /// AMD's library.
    RocmSmi,
    /// The kernel's own files on AMD's GPUs, where ROCm is not on the host.
    Kernel,
}

impl Source {
    /// Word for the source on the screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nvml => "NVML",
            Self::NvidiaSmi => "nvidia-smi",
            Self::RocmSmi => "ROCm SMI",
            Self::Kernel => "the kernel's files",
        }
    }
}

/// Trouble because of which a probe has no readings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Code: the vendor's own symbol where there is one, such as `NVML_ERROR_DRIVER_NOT_LOADED`; `library-missing` when
    /// the library cannot be loaded.
    pub code: String,
    /// Text in one line.
    pub text: String,
}

/// Code of [`Trouble`] when the vendor's library cannot be loaded: something else may be asked instead.
pub const LIBRARY_MISSING: &str = "library-missing";

impl Line {
    /// Writes the line with its end, and flushes. Fails when nobody reads any more, which is when a probe ends.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        to.write_all(&text)?;
        to.flush()
    }

    /// Reads a line. The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Vendor;

    #[test]
    fn what_is_written_is_read_back() {
        let device = Device {
            id: "GPU-1".into(),
            vendor: Vendor::Nvidia,
            name: "H100".into(),
            index: 0,
            memory_bytes: 80 << 30,
            pci: Some("0000:65:00.0".into()),
            parent: None,
            partition: None,
            instance: None,
            divided: false,
            numa_node: Some(1),
            cpu_list: Some("0-31".into()),
            nodes: Vec::new(),
        };
        let reading = Reading { id: "GPU-1".into(), temperature_c: Some(41.5), ..Reading::default() };
        for line in [
            Line::Hello(Hello { source: Source::Nvml, driver: Some("570".into()), library: None }),
            Line::Inventory(vec![device]),
            Line::Readings(vec![reading]),
            Line::Trouble(Trouble { code: LIBRARY_MISSING.into(), text: "no libnvidia-ml.so.1".into() }),
        ] {
            let mut bytes = Vec::new();
            line.write(&mut bytes).expect("memory");
            let text = String::from_utf8(bytes).expect("UTF-8");
            assert_eq!(text.matches('\n').count(), 1);
            assert_eq!(Line::parse(&text), Ok(line));
        }
    }

    #[test]
    fn absent_readings_are_not_written() {
        let text = serde_json::to_string(&Reading { id: "a".into(), ..Reading::default() }).expect("plain values");
        assert_eq!(text, r#"{"id":"a","remap_pending":false,"remap_failed":false}"#);
    }

    #[test]
    fn a_strange_line_is_an_error_and_no_panic() {
        for text in ["", "{", "hello", r#"{"inventory":3}"#, r#"{"other":[]}"#] {
            assert!(Line::parse(text).is_err(), "{text}");
        }
    }
}
