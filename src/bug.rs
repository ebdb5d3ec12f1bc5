//! Handling of bugs: a task that panics takes the daemon down, and whoever started it starts it again. A daemon that
//! went on with one task less would look well and not be.

use std::{future::Future, io::Write as _};

/// Exit code of a daemon that ended by a bug of its own (`EX_SOFTWARE` of sysexits.h).
const EXIT: i32 = 70;

tokio::task_local! {
    /// Mark of a panic that concerns one caller alone.
    static CONTAINED: ();
}

/// Makes every panic from now on end the process, but those within [`contain`]. Containers keep running, as they do
/// over any end of labd.
pub fn end_with_the_first() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        if CONTAINED.try_with(|()| ()).is_ok() {
            return;
        }
        // Nothing better can be done where even this cannot be written.
        let _ =
            writeln!(std::io::stderr(), "labd: ends because of a bug in it, please report it; containers keep running");
        std::process::exit(EXIT);
    }));
}

/// Lets a panic in `work` end what polls it, and nothing else: what one request breaks is that request.
pub async fn contain<F: Future>(work: F) -> F::Output {
    CONTAINED.scope((), work).await
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        time::{Duration, Instant},
    };

    use super::*;

    /// Not a test of its own: what [`a_task_that_panics_ends_the_process_and_a_request_does_not`] runs in a process of its own.
    #[test]
    #[ignore = "ends its process"]
    fn panics() {
        end_with_the_first();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let contained = std::env::var_os("LABD_TEST_CONTAINED").is_some();
        runtime.block_on(async {
            let broken = async { assert!(Instant::now().elapsed() > Duration::from_hours(1), "a bug") };
            let task = if contained { tokio::spawn(contain(broken)) } else { tokio::spawn(broken) };
            assert!(task.await.is_err());
            if !contained {
                tokio::time::sleep(Duration::from_mins(1)).await;
            }
        });
    }

    #[test]
    fn a_task_that_panics_ends_the_process_and_a_request_does_not() {
        let run = |contained: bool| {
            let mut test = Command::new(std::env::current_exe().expect("a path"));
            test.args(["bug::tests::panics", "--exact", "--ignored", "--nocapture"]);
            if contained {
                test.env("LABD_TEST_CONTAINED", "1");
            }
            let done = test.output().expect("it runs");
            (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
        };
        let (code, said) = run(false);
        assert!(code == Some(EXIT) && said.contains("ends because of a bug in it"), "{code:?}: {said}");
        assert_eq!(run(true).0, Some(0));
    }
}
