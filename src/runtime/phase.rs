//! How far the process is in its life. One sender (the control plane), every core listens.

use tokio::sync::watch;

/// The phases, in order; there is no way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Taking and forwarding.
    Serving,
    /// No new connections; requests under way are finished, queues drain.
    Draining,
    /// What still waits is given up.
    GivingUp,
    /// Cores end.
    Leaving,
}

/// A core's view of the phase.
pub type PhaseReceiver = watch::Receiver<Phase>;

/// Ends when the phase is `phase` or a later one.
pub async fn reached(receiver: &mut PhaseReceiver, phase: Phase) {
    // A sender that is gone means the process is ending, whatever phase it was in.
    let _ = receiver.wait_for(|now| *now >= phase).await;
}
