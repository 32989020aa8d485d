//! Waiting for what may never come, aloud: a file on a disk that hangs, a pipe that nobody writes to.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

/// Longer than a disk takes for a file that an operator names, unless something is wrong with it.
const LONG: Duration = Duration::from_secs(5);

/// Waits for `what`, and calls `tell` once it has taken long. Needs tokio's timers.
pub async fn telling<T>(what: impl Future<Output = T>, tell: impl FnOnce()) -> T {
    telling_after(LONG, what, tell).await
}

async fn telling_after<T>(long: Duration, what: impl Future<Output = T>, tell: impl FnOnce()) -> T {
    let mut what = pin!(what);
    if let Ok(done) = tokio::time::timeout(long, &mut what).await {
        return done;
    }
    tell();
    what.await
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn only_what_takes_long_is_told_and_it_is_waited_for() {
        let untold = || unreachable!("it was there at once");
        assert_eq!(telling(async { "quick" }, untold).await, "quick");
        let (told, heard) = oneshot::channel();
        let slow = async { heard.await.expect("it is told") };
        let tell = || told.send("slow").expect("it is waited for");
        assert_eq!(telling_after(Duration::from_millis(1), slow, tell).await, "slow");
    }
}
