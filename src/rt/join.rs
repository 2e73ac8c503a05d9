//! Waiting for several futures of one task.

use std::future::{self, Future};
use std::pin::Pin;
use std::task::Poll;

enum Place<F: Future> {
    Running(Pin<Box<F>>),
    Ready(F::Output),
}

/// Runs all `futures` at once; their outputs in the same order. Each wake-up polls all that are left, so this is for
/// dozens, not for thousands.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut places: Vec<_> =
        futures.into_iter().map(|future| Some(Place::Running(Box::pin(future)))).collect();
    future::poll_fn(|context| {
        let mut left = false;
        for place in &mut places {
            if let Some(Place::Running(future)) = place {
                match future.as_mut().poll(context) {
                    Poll::Ready(output) => *place = Some(Place::Ready(output)),
                    Poll::Pending => left = true,
                }
            }
        }
        if left {
            return Poll::Pending;
        }
        let outputs = places.iter_mut().filter_map(|place| match place.take() {
            Some(Place::Ready(output)) => Some(output),
            _ => None,
        });
        Poll::Ready(outputs.collect())
    })
    .await
}
