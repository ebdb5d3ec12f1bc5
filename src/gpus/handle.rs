//! Handle on the GPUs and their manager, for the rest of labd.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};

use super::Inventory;
use crate::control::Refusal;

/// Order of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Lift a quarantine, or forget a GPU that is gone.
    Release {
        /// Id, the beginning of one, or the worker.
        gpu: String,
    },
    /// Let a simulated GPU have a fault.
    Drill {
        /// Id, the beginning of one, or the worker.
        gpu: String,
        /// Code of a row of the fault table.
        fault: String,
    },
}

pub(super) type Asked = (Order, oneshot::Sender<Result<String, Refusal>>);

/// Handle of the task that manages the GPUs.
#[derive(Debug, Clone)]
pub struct Gpus {
    pub(super) orders: mpsc::Sender<Asked>,
    pub(super) view: watch::Receiver<Arc<Inventory>>,
}

impl Gpus {
    /// Handle of no task: every order is refused.
    pub fn none() -> Self {
        Self { orders: mpsc::channel(1).0, view: watch::channel(Arc::default()).1 }
    }

    /// Inventory, whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Inventory>> {
        self.view.clone()
    }

    /// Sends an order, and waits for the answer.
    pub async fn ask(&self, order: Order) -> Result<String, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.orders.send((order, reply)).await.map_err(|_| Refusal::ShuttingDown)?;
        answer.await.map_err(|_| Refusal::ShuttingDown)?
    }

    /// Waits until GPUs are known or it is known that there are none, at most `at_most`.
    pub async fn found(&self, at_most: Duration) {
        let mut view = self.view.clone();
        let known = view.wait_for(|inventory| inventory.settled || !inventory.units.is_empty());
        // Whoever gave up waiting plans with what there is.
        let _ = tokio::time::timeout(at_most, known).await;
    }

    /// Waits until everything was looked at, at most `at_most`.
    pub async fn settled(&self, at_most: Duration) {
        let mut view = self.view.clone();
        let _ = tokio::time::timeout(at_most, view.wait_for(|inventory| inventory.settled)).await;
    }
}
