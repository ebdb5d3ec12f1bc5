//! Kernel messages about GPUs, as they come, from `/dev/kmsg`.
//!
//! A read gives one record: `priority,number,microseconds since boot,flags;text`, a line's end, and lines that begin with a
//! space and say more of it (` DEVICE=+pci:0000:c3:00.0`). Characters that cannot be printed, line ends among them, are
//! written as `\x0a`. One message can be several records: drivers print it line by line, and others print in between; then
//! the GPU is named in the first and the fault in the last.
//!
//! * [`Record::read`]: one record. Pure.
//! * [`Assembler`]: records to faults. Pure.
//! * [`explain`]: lines that somebody pasted. Pure.
//! * [`follow`]: the task that reads, from the first record of this boot that the kernel still has.

mod pasted;

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use labd_gpu::pci;
pub use pasted::{Explained, Is, explain};
use tokio::{net::unix::pipe, sync::mpsc};

use super::faults::{Fault, Sign, is_needed_firmware, look_up};
use crate::time::Timestamp;

/// Device from which the kernel's messages are read.
pub const PATH: &str = "/dev/kmsg";

/// Longest record. The kernel's own limit is 8 KiB (`PRINTK_MESSAGE_MAX` and what is written before and after it).
const RECORD: usize = 16 << 10;
/// Number of lines that wait for labd's loop. It is quick; a storm of lines waits in the kernel's buffer.
const WAITING: usize = 64;
/// Number of unfinished messages that are remembered.
const OPEN: usize = 32;
/// Time after a file of firmware was not found in which the driver gives up on its GPU for it. It does so within a
/// second; the rest is for a machine that starts sixteen at once (chosen, not measured).
const FIRMWARE: Duration = Duration::from_mins(1);
/// Time between two reads of a plain file, which is what tests have in place of the kernel's.
const LOOK: Duration = Duration::from_millis(100);

/// A line of the kernel that tells of a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelLine {
    /// Time at which the kernel wrote it. For lines from before labd's start it is as exact as the kernel's clock: to
    /// some seconds, after months.
    pub at: Timestamp,
    /// Row of the fault.
    pub fault: &'static Fault,
    /// PCI address of the GPU, such as `0000:c3:00.0`; absent when the line names none: then it concerns the whole
    /// node.
    pub pci: Option<String>,
    /// Text of the line.
    pub text: String,
}

/// Reason why there are no lines of the kernel.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the kernel's messages from `{}`, so GPU faults are noticed late or not at all: {why}; run labd as root", path.display())]
pub struct Unreadable {
    path: PathBuf,
    #[source]
    why: io::Error,
}

/// Record of `/dev/kmsg`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Microseconds since boot.
    pub usec: u64,
    /// Whether it continues the line of the record before it.
    pub continues: bool,
    /// Caller that printed it, such as `T1234` (a thread): only some kernels say so.
    pub caller: Option<String>,
    /// Text, on one line.
    pub text: String,
    /// PCI address of the device that the kernel says it is about.
    pub device: Option<String>,
}

impl Record {
    /// Reads a record, with the lines after its first that belong to it. `None` for anything else, and for what a
    /// process wrote there: only the kernel's own messages count (facility 0).
    pub fn read(record: &str) -> Option<Self> {
        let mut lines = record.lines();
        let (header, text) = lines.next()?.split_once(';')?;
        let mut fields = header.split(',');
        let priority: u32 = fields.next()?.parse().ok()?;
        let _number: u64 = fields.next()?.parse().ok()?;
        let usec = fields.next()?.parse().ok()?;
        let flags = fields.next()?;
        if priority >> 3 != 0 {
            return None;
        }
        let caller = fields.find_map(|f| f.strip_prefix("caller=")).map(str::to_owned);
        let device = lines.filter_map(|l| l.trim_start().strip_prefix("DEVICE=+pci:")).find_map(pci::address);
        // Until Linux 4.9 `c` began a broken line and `+` went on with it; since then `c` goes on.
        Some(Self { usec, continues: matches!(flags, "c" | "+"), caller, text: one_line(&unescape(text)), device })
    }
}

/// Text with every `\x0a` and the like turned back into its character, byte by byte.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        let byte = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let Some(byte) = byte {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.extend_from_slice(b"\\x");
            rest = after;
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Several lines as one. NVIDIA's driver begins each line of a message with `NVRM:`. A single line stays as it is: it
/// may continue in the next record.
fn one_line(text: &str) -> String {
    let mut lines = text.lines().filter(|l| !l.trim().is_empty());
    let mut whole = lines.next().unwrap_or_default().to_owned();
    for line in lines.map(str::trim) {
        whole.truncate(whole.trim_end().len());
        whole.push(' ');
        whole.push_str(line.strip_prefix("NVRM:").map_or(line, str::trim_start));
    }
    whole
}

/// Fault that a whole message tells of, and the GPU that it names. `None` when it tells of no fault.
pub fn parse(text: &str) -> Option<(&'static Fault, Option<String>)> {
    look_up(Sign::Kernel(text)).map(|fault| (fault, address(text)))
}

/// GPU instance of MIG that a line names, as in `NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 94, ...`. The driver writes it in
/// decimal, with two digits. What follows the place can be a process's own name.
pub fn instance(text: &str) -> Option<u32> {
    let (place, _) = text.split_once("): ")?;
    let (_, rest) = place.split_once("GPU-I:")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Error with which a line ends, as a number: 22 of `failed -22`, of `failed (-22).` and of `failed with error -22`.
fn error_number(text: &str) -> Option<u32> {
    let (_, end) = text.rsplit_once('-')?;
    end.trim_end_matches(['.', '!', ')']).parse().ok()
}

/// PCI address of what a line is about: the first one, or the one of the device whose error a port received.
fn address(text: &str) -> Option<String> {
    /// Words of Linux's AER driver before the device; the port is at the beginning of the line.
    const RECEIVED: [&str; 3] = [" received: ", " received from ", " received from: "];
    let of_device = text.split_once("AER: ").and_then(|(_, rest)| {
        let (_, device) = RECEIVED.iter().find_map(|words| rest.split_once(words))?;
        first_address(device)
    });
    of_device.or_else(|| first_address(text))
}

/// First PCI address in a text.
fn first_address(text: &str) -> Option<String> {
    text.split(|c: char| c.is_whitespace() || "()[],;'".contains(c)).find_map(|word| {
        let word = word.trim_end_matches([':', '.']);
        let bare = word.strip_prefix("PCI:").unwrap_or(word);
        // A port's service, as in `pciehp 0000:00:01.1:pcie004: ...`.
        let bare = bare.split_once(":pcie").map_or(bare, |(port, _)| port);
        // Without a function, a domain must be whole: a time such as 12:30:05 is no address.
        let plain = bare.contains('.') || bare.split(':').next().is_some_and(|domain| domain.len() >= 4);
        if plain { pci::address(bare) } else { None }
    })
}

/// Beginning of the message in which NVIDIA's driver names a GPU in its first line and says what happened to it in a
/// later one.
const HEAD: &str = "NVRM: The NVIDIA GPU ";

/// Assembler of messages that come in several records; it finds those that tell of a fault.
#[derive(Debug, Default)]
pub struct Assembler {
    /// Last record of each caller.
    last: VecDeque<Record>,
    /// Messages whose end has not come.
    open: VecDeque<Record>,
    /// GPUs whose firmware was not found, and when, in microseconds since boot.
    firmware: VecDeque<(Option<String>, u64)>,
}

impl Assembler {
    /// Fault that `record` tells of, alone or together with records before it; the GPU's address; and the message.
    pub fn take(&mut self, record: Record) -> Option<(&'static Fault, Option<String>, String)> {
        if record.continues {
            return self.go_on(record);
        }
        let found = self.whole(&record).map(|found| self.with_firmware(found, record.usec));
        self.remember(record);
        found
    }

    /// The same, unless a GPU does not start because its firmware is missing: a card that is not broken.
    fn with_firmware(
        &mut self,
        (fault, pci, text): (&'static Fault, Option<String>, String),
        usec: u64,
    ) -> (&'static Fault, Option<String>, String) {
        /// Errors with which the driver gives up for want of a file: `ENOENT` and `ENODEV`.
        const MISSING: [u32; 2] = [2, 19];
        let recent = |at: u64| Duration::from_micros(usec.saturating_sub(at)) <= FIRMWARE;
        self.firmware.retain(|(_, at)| recent(*at));
        if is_needed_firmware(&text) {
            if self.firmware.len() == OPEN {
                self.firmware.pop_front();
            }
            self.firmware.push_back((pci.clone(), usec));
        }
        let Some(instead) = fault.without_firmware.and_then(look_up) else { return (fault, pci, text) };
        // Some lines of a failed start name no GPU.
        let same = |gpu: &Option<String>| pci.is_none() || *gpu == pci;
        if error_number(&text).is_some_and(|error| !MISSING.contains(&error)) {
            // It is something else, also where the next line has no number.
            self.firmware.retain(|(gpu, _)| !same(gpu));
        }
        let missing = self.firmware.iter().any(|(gpu, _)| same(gpu));
        (if missing { instead } else { fault }, pci, text)
    }

    fn whole(&mut self, record: &Record) -> Option<(&'static Fault, Option<String>, String)> {
        let text = &record.text;
        let Some((fault, pci)) = parse(text) else {
            if text.starts_with(HEAD) {
                push(&mut self.open, record.clone());
                return None;
            }
            return self.end_of_open(record);
        };
        if let Some(pci) = pci.or_else(|| record.device.clone()) {
            return Some((fault, Some(pci), text.clone()));
        }
        // A last line names no GPU: the first line did. Where two messages are mixed and nobody says whose line this is, it
        // is the older one's; both GPUs have the fault in the end.
        let head = self.head_of(record);
        match head {
            Some(head) => Some((fault, address(&head.text), one_line(&format!("{}\n{text}", head.text)))),
            None => Some((fault, None, text.clone())),
        }
    }

    /// Fault that a line tells of only together with its message's first line, as `is not supported by ...` does.
    fn end_of_open(&mut self, record: &Record) -> Option<(&'static Fault, Option<String>, String)> {
        let at = self.position(record)?;
        let joined = one_line(&format!("{}\n{}", self.open[at].text, record.text));
        if let Some((fault, pci)) = parse(&joined) {
            self.open.remove(at);
            return Some((fault, pci, joined));
        }
        self.open[at].text = joined;
        None
    }

    /// Continues the line of the record before. Nothing new is told when that line had told it already.
    fn go_on(&mut self, record: Record) -> Option<(&'static Fault, Option<String>, String)> {
        let same = |r: &Record| record.caller.is_none() || r.caller == record.caller;
        let Some(at) = self.last.iter().rposition(same) else {
            let found = self.whole(&record);
            self.remember(record);
            return found;
        };
        let mut whole = self.last.remove(at)?;
        let told = parse(&whole.text);
        whole.text.push_str(&record.text);
        whole.device = whole.device.or(record.device);
        let found = if told.is_none() { self.whole(&whole) } else { None };
        self.remember(whole);
        found
    }

    fn remember(&mut self, record: Record) {
        self.last.retain(|r| r.caller != record.caller);
        push(&mut self.last, record);
    }

    /// Position of the oldest message that `record` may be a further line of: those begin in the middle of a sentence.
    fn position(&self, record: &Record) -> Option<usize> {
        let text = record.text.strip_prefix("NVRM:")?.trim_start();
        if !["(PCI ID", "installed in", "fallen off", "supported through"].iter().any(|middle| text.starts_with(middle))
        {
            return None;
        }
        self.open.iter().position(|head| head.caller == record.caller)
    }

    fn head_of(&mut self, record: &Record) -> Option<Record> {
        let at = self.position(record)?;
        self.open.remove(at)
    }
}

/// Adds a record and forgets the oldest where there are too many.
fn push(records: &mut VecDeque<Record>, record: Record) {
    if records.len() == OPEN {
        records.pop_front();
    }
    records.push_back(record);
}

/// Follows the kernel's messages, from the first that it still has of this boot, and tells those of faults. Ends with the
/// receiver. Must be called in a runtime; nothing of it ever blocks.
pub fn follow(path: &Path) -> Result<mpsc::Receiver<KernelLine>, Unreadable> {
    let source = Source::open(path).map_err(|why| Unreadable { path: path.to_owned(), why })?;
    let up = uptime();
    let (lines_tx, lines_rx) = mpsc::channel(WAITING);
    tokio::spawn(pump(source, Clock { now: Timestamp::now, up }, lines_tx));
    Ok(lines_rx)
}

/// Time since boot; nothing where it cannot be read.
fn uptime() -> Duration {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split_whitespace().next().and_then(|s| s.parse().ok());
    seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or_default()
}

/// Clock that turns the kernel's times into ours.
struct Clock {
    now: fn() -> Timestamp,
    /// Time since boot at which the following began.
    up: Duration,
}

impl Clock {
    /// Time of boot, as computed at the start.
    fn boot(&self) -> Timestamp {
        let now = (self.now)().as_millis();
        Timestamp::from_millis(now.saturating_sub(i64::try_from(self.up.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Time at which a record was written. What comes while labd listens was written just now, and the wall clock says
    /// when better than the kernel's, which nobody corrects.
    fn at(&self, boot: Timestamp, usec: u64) -> Timestamp {
        let since_boot = Duration::from_micros(usec);
        if since_boot > self.up { (self.now)() } else { boot.plus(since_boot) }
    }
}

/// Source of the records.
enum Source {
    /// Device of the kernel: each read is one record. It is not a pipe and is waited for like one.
    Device(pipe::Receiver),
    /// Plain file, which grows.
    Plain(File),
    #[cfg(test)]
    Script(VecDeque<io::Result<Vec<u8>>>),
}

impl Source {
    fn open(path: &Path) -> io::Result<Self> {
        if path.metadata()?.is_file() {
            return File::open(path).map(Self::Plain);
        }
        pipe::OpenOptions::new().unchecked(true).open_receiver(path).map(Self::Device)
    }

    /// Reads the next bytes. Safe to drop while it waits.
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Device(device) => loop {
                device.readable().await?;
                // Not the `AsyncRead`: it takes a short read for the last one, and here every read is short.
                match device.try_read(buffer) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
            },
            Self::Plain(file) => loop {
                match file.read(buffer)? {
                    0 => tokio::time::sleep(LOOK).await,
                    n => return Ok(n),
                }
            },
            #[cfg(test)]
            Self::Script(reads) => match reads.pop_front() {
                Some(Ok(bytes)) => {
                    buffer[..bytes.len()].copy_from_slice(&bytes);
                    Ok(bytes.len())
                }
                Some(Err(e)) => Err(e),
                None => std::future::pending().await,
            },
        }
    }
}

async fn pump(mut source: Source, clock: Clock, lines_tx: mpsc::Sender<KernelLine>) {
    let boot = clock.boot();
    let mut assembler = Assembler::default();
    let mut buffer = vec![0; RECORD];
    let mut pending = String::new();
    loop {
        let read = tokio::select! {
            () = lines_tx.closed() => return,
            read = source.read(&mut buffer) => read,
        };
        match read {
            Ok(0) => return,
            Ok(n) => pending.push_str(&String::from_utf8_lossy(&buffer[..n])),
            // `EPIPE`: records were overwritten before they were read; the next is the oldest that is left.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::Interrupted) => continue,
            Err(e) => {
                tracing::warn!("the kernel's messages ended: {e}");
                return;
            }
        }
        for record in whole_records(&mut pending) {
            let Some(record) = Record::read(&record) else { continue };
            let at = clock.at(boot, record.usec);
            let Some((fault, pci, text)) = assembler.take(record) else { continue };
            if lines_tx.send(KernelLine { at, fault, pci, text }).await.is_err() {
                return;
            }
        }
    }
}

/// Takes the records out of `pending`, each with its further lines; a line that is cut off stays.
fn whole_records(pending: &mut String) -> Vec<String> {
    let end = pending.rfind('\n').map_or(0, |at| at + 1);
    let whole: String = pending.drain(..end).collect();
    let mut records: Vec<String> = Vec::new();
    for line in whole.split_inclusive('\n') {
        match records.last_mut() {
            Some(record) if line.starts_with(' ') => record.push_str(line),
            _ => records.push(line.to_owned()),
        }
    }
    // What has no end for so long is no record.
    if pending.len() > RECORD {
        pending.clear();
    }
    records
}

#[cfg(test)]
mod tests;
