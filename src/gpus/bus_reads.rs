//! Reads of the PCI bus's files, one after the other and off the manager's loop: a file system can hang, and then the loop
//! would.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
};

use labd_gpu::pci::{self, BusGpu};
use tokio::task::{JoinHandle, spawn_blocking};

use super::{bus::same_slot, kmsg::KernelLine};

/// Number of questions that wait. They are answered in milliseconds; where they are not, the bus hangs, and what the kernel
/// prints then need not be told twice.
const WAITING: usize = 64;

/// Question about the bus.
#[derive(Debug)]
pub(super) enum Question {
    /// All GPUs on it.
    Gpus,
    /// GPUs that a line of the kernel about a device is about: those at its address, or behind the port that has it.
    Behind(KernelLine),
}

/// Answer to a [`Question`].
#[derive(Debug)]
pub(super) enum Answer {
    /// GPUs on the bus, and the names of their slots by address.
    Gpus(Vec<BusGpu>, BTreeMap<String, String>),
    /// Line, and the addresses of the GPUs that it is about.
    Behind(KernelLine, Vec<String>),
}

/// Questions that wait, and the one that is being answered.
#[derive(Debug)]
pub(super) struct BusReads {
    root: PathBuf,
    waiting: VecDeque<Question>,
    running: Option<JoinHandle<Answer>>,
}

impl BusReads {
    /// Reads below this root of the file system.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), waiting: VecDeque::new(), running: None }
    }

    /// Asks. The answer comes from [`BusReads::answer`]; none comes where too many wait.
    pub(super) fn ask(&mut self, question: Question) {
        if self.waiting.len() < WAITING {
            self.waiting.push_back(question);
        }
        self.begin();
    }

    /// Next answer; never comes while nothing is asked. `None` for a question that cannot be answered. Safe to drop while it
    /// waits.
    pub(super) async fn answer(&mut self) -> Option<Answer> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let answer = running.await.ok();
        self.running = None;
        self.begin();
        answer
    }

    fn begin(&mut self) {
        if self.running.is_none()
            && let Some(question) = self.waiting.pop_front()
        {
            let root = self.root.clone();
            self.running = Some(spawn_blocking(move || read(&root, question)));
        }
    }
}

fn read(root: &Path, question: Question) -> Answer {
    match question {
        Question::Gpus => {
            let gpus = pci::bus(root);
            let slots = gpus.iter().filter_map(|gpu| Some((gpu.address.clone(), pci::slot(root, &gpu.address)?)));
            let slots = slots.collect();
            Answer::Gpus(gpus, slots)
        }
        Question::Behind(line) => {
            let gpus = line.pci.as_deref().map(|pci| gpus_at(root, pci)).unwrap_or_default();
            Answer::Behind(line, gpus)
        }
    }
}

/// GPUs at a PCI address, or behind the port that has it.
fn gpus_at(root: &Path, address: &str) -> Vec<String> {
    let devices = root.join("sys/bus/pci/devices");
    let is_at = |gpu: &str| {
        // The kernel's folder of a device is in that of the port it is behind.
        let behind = devices.join(gpu).canonicalize();
        same_slot(gpu, address) || behind.is_ok_and(|path| path.iter().any(|part| part == address))
    };
    pci::gpus(root).into_iter().map(|(gpu, _)| gpu).filter(|gpu| is_at(gpu)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{gpus::health::by_code, time::Timestamp};

    #[test]
    fn a_port_that_goes_down_takes_the_gpus_behind_it_along_and_no_others() {
        let root = tempfile::tempdir().expect("a directory");
        let (bus, devices) = (root.path().join("sys/bus/pci/devices"), root.path().join("sys/devices/pci0000:00"));
        std::fs::create_dir_all(&bus).expect("a folder");
        for (behind, address, class) in [
            ("0000:00:01.1", "0000:03:00.0", "0x030000"),
            ("0000:00:01.2", "0000:04:00.0", "0x120000"),
            ("0000:00:01.1", "0000:03:00.1", "0x040300"),
        ] {
            let dir = devices.join(behind).join(address);
            std::fs::create_dir_all(&dir).expect("a folder");
            std::fs::write(dir.join("vendor"), "0x1002\n").expect("a file");
            std::fs::write(dir.join("class"), format!("{class}\n")).expect("a file");
            std::os::unix::fs::symlink(&dir, bus.join(address)).expect("a link");
        }
        assert_eq!(gpus_at(root.path(), "0000:00:01.1"), ["0000:03:00.0"]);
        assert_eq!(gpus_at(root.path(), "0000:04:00.0"), ["0000:04:00.0"]);
        assert_eq!(gpus_at(root.path(), "0000:05:00.0"), Vec::<String>::new(), "some network card");
    }

    #[tokio::test]
    async fn each_question_has_its_answer_in_its_turn_and_too_many_are_left_out() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = root.path().join("sys/bus/pci/devices/0000:41:00.0");
        std::fs::create_dir_all(&dir).expect("a folder");
        for (file, text) in [("vendor", "0x10de"), ("class", "0x030200")] {
            std::fs::write(dir.join(file), text).expect("a file");
        }
        let mut reads = BusReads::new(root.path());
        let waits = tokio::time::timeout(Duration::from_millis(20), reads.answer()).await;
        assert!(waits.is_err(), "nothing was asked");
        let line = KernelLine {
            at: Timestamp::from_millis(0),
            fault: by_code("pcie-down").expect("a row"),
            pci: Some("0000:41:00.0".into()),
            text: "Link Down".into(),
        };
        reads.ask(Question::Gpus);
        for _ in 0..2 * WAITING {
            reads.ask(Question::Behind(line.clone()));
        }
        assert!(matches!(reads.answer().await, Some(Answer::Gpus(gpus, _)) if gpus.len() == 1));
        for _ in 0..WAITING {
            assert!(matches!(reads.answer().await, Some(Answer::Behind(_, gpus)) if gpus == ["0000:41:00.0"]));
        }
        assert!(reads.running.is_none());
    }
}
