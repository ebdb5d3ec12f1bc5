//! Fuzzing: one function for each kind of strangers' bytes; none may panic, whatever it is given. For the fuzz targets
//! in `tests/fuzz` and, with variations of what is right, for the unit tests.

use std::path::Path;

use labd_gpu::{line::Line, smi};

use crate::{
    config::{Config, tls::Certificate},
    gpus::kmsg,
    jobs::submission::{Named, Submission},
    ray::{self, Mark},
    time::Timestamp,
    training::report::Report,
};

/// Reads `labd.toml`, which a person writes.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Err(e) = Config::parse(Path::new("/etc/labd/labd.toml"), &text) {
        assert!(!e.to_string().contains('\n'), "people read one line of an error: {e}");
    }
}

/// Reads a certificate with its key, which somebody else made.
pub fn certificate(bytes: &[u8]) {
    match Certificate::parse(bytes, bytes) {
        Ok(certificate) => drop((certificate.covers("lab.example"), certificate.out_of_time(Timestamp::now()))),
        Err(wrong) => assert!(!wrong.text.contains('\n'), "people read one line of an error: {wrong:?}"),
    }
}

/// Reads a submission, which whoever holds the token sends.
pub fn submission(bytes: &[u8]) {
    let Some(read) = Submission::parse(bytes) else { return };
    assert_eq!(Submission::parse(read.to_json().as_bytes()).as_ref(), Some(&read), "as it stands in the ledger");
    assert_eq!(read.to_json().len(), read.bytes());
    if let Err(line) = read.check() {
        assert!(!line.contains('\n'), "people read one line of an error: {line}");
        return;
    }
    let id = read.id().unwrap_or("raysubmit_0123456789abcdef");
    let mark = Mark { root: id.to_owned(), attempt: 2, submitted: Some("then".to_owned()) };
    let body = read.body(id, mark, Named { run: Some("food11"), note: None });
    let handed = Submission::parse(&body);
    assert_eq!(handed.as_ref().and_then(Submission::id), Some(id), "it is handed in under the id that it has");
    let _ = (read.retry(), read.asks(), read.packages(), read.names_run(), read.names_place());
}

/// Reads answers of Ray's dashboard, jobs and training runs, and what a run's controller posts.
pub fn ray(bytes: &[u8]) {
    let now = Timestamp::from_millis(1);
    if let Some(report) = Report::parse(bytes, now) {
        assert!(report.points.iter().all(|point| point.values.len() == report.names.len() && point.at <= now));
    }
    if let Ok(answer) = serde_json::from_slice(bytes) {
        let _ = ray::train::read(&answer);
        let _ = ray::read_jobs(answer);
    }
}

/// Reads a record of the kernel's log, into which drivers write what they like.
pub fn kernel(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(record) = kmsg::Record::read(&text) {
        let _ = kmsg::parse(&record.text);
    }
    let _ = (kmsg::parse(&text), kmsg::instance(&text));
}

/// Reads a probe's line, and what `nvidia-smi` prints in its place.
pub fn probe(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = Line::parse(&text);
    let _ = smi::Found::parse(&smi::FIELDS, &text);
    let _ = (smi::unknown_field(&text), smi::trouble(&text));
    let _ = smi::instance_processes(&text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Correct input of each kind: variations of it get further than noise.
    const CONFIG: &[&str] = &[
        include_str!("../systemd/labd.toml"),
        "[lab]\nname = \"x\"\nchange_window = \"24 h\"\n[network]\nsubnet = \"198.18.7.0/24\"\n[[mounts]]\nsource = \"/a\"\n\
         target = \"/b\"\n[services.ray-worker]\nmemory = \"9 GiB\"\n[images.build]\npackages = [\"a>=1\"]\n",
    ];
    const CERTIFICATE: &[&str] = &[
        concat!(include_str!("../tests/data/tls/cert.pem"), include_str!("../tests/data/tls/key.pem")),
        concat!(include_str!("../tests/data/tls/ca.pem"), include_str!("../tests/data/tls/key.pem")),
    ];
    const SUBMISSION: &[&str] = &[
        r#"{"entrypoint": "python a.py", "submission_id": "a", "metadata": {"labd.retry": "3", "labd.run": "r"},
            "runtime_env": {"env_vars": {"A": "b"}, "pip": ["x"], "working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"},
            "entrypoint_num_gpus": 1, "entrypoint_resources": {"a": 0.5}}"#,
        r#"{"entrypoint": "x", "job_id": "raysubmit_1", "runtime_env": {"pip": {"packages": ["a"], "pip_check": false}}}"#,
    ];
    const RAY: &[&str] = &[
        include_str!("../tests/data/ray-2.60-train-runs.json"),
        r#"[{"submission_id": "a", "status": "FAILED", "error_type": "X", "message": "m", "start_time": 1, "end_time": 2,
             "driver_node_id": "00ff", "driver_exit_code": 1}]"#,
        r#"{"root": "a", "submission": "a-r1", "run": "a", "run_id": "0a", "names": ["loss"], "dropped": 3,
            "points": [{"seq": 1, "at": 5, "group": 1, "checkpoint": "checkpoint_1", "values": [null]}],
            "groups": [{"group": 1, "began": 4, "ended": 6, "why": "x", "nodes": ["198.18.1.20"]}]}"#,
    ];
    const KERNEL: &[&str] = &[
        "3,1234,5678,-;NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n \
         SUBSYSTEM=pci\n DEVICE=+pci:0000:41:00.0\n",
        "6,1,2,c,caller=T12;amdgpu 0000:03:00.0: amdgpu: GPU reset begin!\\x0a\\xff",
        "NVRM: Xid (PCI:0000:41:00 GPU-I:05): 94, Contained: SM (0x1). RST: No, D-RST: No",
    ];
    const PROBE: &[&str] = &[
        r#"{"kind":"reading","id":"GPU-1","utilization":3,"memory_used_bytes":5}"#,
        "0, GPU-1, 00000000:41:00.0, 550.1, NVIDIA A100, 40960, 5, 3, 40, 55.1, 400.0, 1410, 1215, 0x0000000000000001, 0, 0, \
         0, 0, No, Enabled, None\n",
        "Unable to determine the device handle for GPU0000:41:00.0: Unknown Error\nField \"x\" is not a valid field to query.",
    ];

    /// Edit that puts bytes over, into or out of correct input.
    #[derive(Debug, Clone)]
    enum Edit {
        Put(prop::sample::Index, Vec<u8>),
        Insert(prop::sample::Index, Vec<u8>),
        Cut(prop::sample::Index, usize),
        Repeat(prop::sample::Index, usize, usize),
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let words: &[&str] = &[
            "\0",
            "\n",
            "\u{202e}",
            "é",
            "null",
            "-1",
            "99999999999999999999",
            "1e309",
            "[",
            "{",
            "\"",
            "\\x",
            "\\",
            ",",
            ";",
            "=",
            "[[",
            "'",
            "0x",
            "GPU",
            "PCI:",
            "true",
            "{}",
            "[]",
            "-",
            "NaN",
            "\u{feff}",
            "18446744073709551615",
            "GiB",
            " h",
        ];
        prop_oneof![
            prop::sample::select(words.to_vec()).prop_map(|w| w.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 1..8),
        ]
    }

    fn edit() -> impl Strategy<Value = Edit> {
        let at = any::<prop::sample::Index>;
        prop_oneof![
            (at(), piece()).prop_map(|(at, bytes)| Edit::Put(at, bytes)),
            (at(), piece()).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
            (at(), 1_usize..40).prop_map(|(at, n)| Edit::Cut(at, n)),
            (at(), 1_usize..40, 1_usize..200).prop_map(|(at, n, times)| Edit::Repeat(at, n, times)),
        ]
    }

    fn varied(seeds: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        (prop::sample::select(seeds), prop::collection::vec(edit(), 0..6)).prop_map(|(seed, edits)| {
            let mut bytes = seed.as_bytes().to_vec();
            for edit in edits {
                let at = |index: &prop::sample::Index| if bytes.is_empty() { 0 } else { index.index(bytes.len()) };
                match edit {
                    Edit::Put(index, new) => {
                        let from = at(&index);
                        let to = (from + new.len()).min(bytes.len());
                        bytes.splice(from..to, new);
                    }
                    Edit::Insert(index, new) => {
                        let from = at(&index);
                        bytes.splice(from..from, new);
                    }
                    Edit::Cut(index, n) => {
                        let from = at(&index);
                        let to = (from + n).min(bytes.len());
                        bytes.drain(from..to);
                    }
                    Edit::Repeat(index, n, times) => {
                        let from = at(&index);
                        let to = (from + n).min(bytes.len());
                        let again = bytes[from..to].repeat(times);
                        bytes.splice(to..to, again);
                    }
                }
            }
            bytes
        })
    }

    /// Checks that correct input is not refused at once: then the variations of it test nothing.
    #[test]
    fn the_seeds_are_right() {
        for text in CONFIG {
            Config::parse(Path::new("/labd.toml"), text).expect("right");
        }
        Certificate::parse(CERTIFICATE[0].as_bytes(), CERTIFICATE[0].as_bytes()).expect("right");
        for text in SUBMISSION {
            Submission::parse(text.as_bytes()).expect("right").check().expect("right");
        }
        assert!(KERNEL.iter().filter(|text| kmsg::Record::read(text).is_some()).count() == 2);
        assert!(smi::Found::parse(&smi::FIELDS, PROBE[1]).is_ok());
        let jobs = serde_json::from_str(RAY[1]).expect("JSON");
        assert_eq!(ray::read_jobs(jobs).len(), 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn no_labd_toml_makes_it_panic(bytes in varied(CONFIG)) {
            config(&bytes);
        }

        #[test]
        fn no_certificate_makes_it_panic(bytes in varied(CERTIFICATE)) {
            certificate(&bytes);
        }

        #[test]
        fn no_submission_makes_it_panic(bytes in varied(SUBMISSION)) {
            submission(&bytes);
        }

        #[test]
        fn no_answer_of_rays_makes_it_panic(bytes in varied(RAY)) {
            ray(&bytes);
        }

        #[test]
        fn no_line_of_the_kernels_makes_it_panic(bytes in varied(KERNEL)) {
            kernel(&bytes);
        }

        #[test]
        fn no_line_of_a_probes_makes_it_panic(bytes in varied(PROBE)) {
            probe(&bytes);
        }
    }
}
