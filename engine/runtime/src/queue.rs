//! Bounded queues from one core to another, with one sender and one receiver.

use crate::backend::{Moving, QueueEnd, simulated};
use glommio::channels::shared_channel::{self, ConnectedReceiver, ConnectedSender, SharedReceiver, SharedSender};
use std::marker::PhantomData;

/// A value that moves between cores. Nobody looks at it through a reference.
struct Moved<T>(T);

// SAFETY: no method gives out a `&T`, so sharing a `&Moved<T>` reaches no `T`. glommio's queue asks for `Sync`
// although it only moves values.
unsafe impl<T: Send> Sync for Moved<T> {}

/// The sending half of a bounded single-producer, single-consumer queue between two cores, not yet connected.
pub struct QueueSender<T: Send>(Way<SharedSender<Moved<T>>, T>);
/// The receiving half, not yet connected.
pub struct QueueReceiver<T: Send>(Way<SharedReceiver<Moved<T>>, T>);
/// The sending half, on its core.
pub struct Sender<T: Send>(Way<ConnectedSender<Moved<T>>, T>);
/// The receiving half, on its core.
pub struct Receiver<T: Send>(Way<ConnectedReceiver<Moved<T>>, T>);

/// One end of a queue: the runtime's, or in a simulation the simulation's.
enum Way<E, T> {
    Real(E, PhantomData<T>),
    Simulated(Box<dyn QueueEnd>),
}

/// A queue for `capacity` values from one core to another.
pub fn queue<T: Send>(capacity: usize) -> (QueueSender<T>, QueueReceiver<T>) {
    if let Some((sender, receiver)) = simulated(|backend| backend.queue(capacity)) {
        return (QueueSender(Way::Simulated(sender)), QueueReceiver(Way::Simulated(receiver)));
    }
    let (sender, receiver) = shared_channel::new_bounded(capacity);
    (QueueSender(Way::Real(sender, PhantomData)), QueueReceiver(Way::Real(receiver, PhantomData)))
}

/// A value that has passed a simulated queue.
fn unpacked<T: 'static>(value: Moving) -> T {
    *value.downcast().expect("a queue carries values of one type")
}

impl<T: Send + 'static> QueueSender<T> {
    /// Binds this end to the calling core, and waits for the other end.
    pub async fn connect(self) -> Sender<T> {
        Sender(match self.0 {
            Way::Real(sender, _) => Way::Real(sender.connect().await, PhantomData),
            Way::Simulated(end) => {
                end.connected().await;
                Way::Simulated(end)
            }
        })
    }
}

impl<T: Send + 'static> QueueReceiver<T> {
    pub async fn connect(self) -> Receiver<T> {
        Receiver(match self.0 {
            Way::Real(receiver, _) => Way::Real(receiver.connect().await, PhantomData),
            Way::Simulated(end) => {
                end.connected().await;
                Way::Simulated(end)
            }
        })
    }
}

impl<T: Send + 'static> Sender<T> {
    /// Returns the value if the queue is full. `None`: the value was sent, or the other core is gone.
    pub fn try_send(&self, value: T) -> Option<T> {
        use glommio::{GlommioError, ResourceType};
        match &self.0 {
            Way::Real(sender, _) => match sender.try_send(Moved(value)) {
                Err(GlommioError::WouldBlock(ResourceType::Channel(value))) => Some(value.0),
                _ => None,
            },
            Way::Simulated(end) => end.try_send(Box::new(value)).map(unpacked),
        }
    }

    /// Waits for room. `false`: the other core is gone. Only one task at a time may wait.
    pub async fn send(&self, value: T) -> bool {
        match &self.0 {
            Way::Real(sender, _) => sender.send(Moved(value)).await.is_ok(),
            Way::Simulated(end) => end.send(Box::new(value)).await,
        }
    }
}

impl<T: Send + 'static> Receiver<T> {
    /// `None`: the other core is gone, and everything that it sent has been received.
    pub async fn recv(&self) -> Option<T> {
        match &self.0 {
            Way::Real(receiver, _) => receiver.recv().await.map(|moved| moved.0),
            Way::Simulated(end) => end.receive().await.map(unpacked),
        }
    }
}
