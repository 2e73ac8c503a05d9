//! Waiting for several futures of one task.

use std::future::{self, Future};
use std::pin::Pin;
use std::task::Poll;

/// Runs all `futures` at once; their outputs in the same order. Each wake-up polls all that are left, so this is for
/// dozens, not for thousands.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut places: Vec<(Option<Pin<Box<F>>>, Option<F::Output>)> =
        futures.into_iter().map(|future| (Some(Box::pin(future)), None)).collect();
    future::poll_fn(|context| {
        let mut left = false;
        for (running, output) in &mut places {
            if let Some(future) = running {
                match future.as_mut().poll(context) {
                    Poll::Ready(ready) => (*running, *output) = (None, Some(ready)),
                    Poll::Pending => left = true,
                }
            }
        }
        if left { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    places.into_iter().filter_map(|(_, output)| output).collect()
}
