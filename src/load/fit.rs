//! Whether an export can carry a plan, and which part of it the plan is about.

use std::ops::Range;

use super::{LoadError, Plan};
use crate::client::Connection;
use crate::load::verify::BLOCK_MIN;
use crate::proto::TransmissionFlags;

/// Blocks that are kept in mind for `--verify`, five bytes each.
const VERIFIED_BLOCKS_MAX: u64 = 1 << 28;
/// Bytes of reads in flight that wait to be checked.
const VERIFIED_IN_FLIGHT_MAX: u64 = 4 << 30;

/// The window of the export that requests stay in.
///
/// # Errors
/// [`LoadError::Unfit`]: what does not fit, where, and what to do.
pub(super) fn fit(plan: &Plan, connection: &Connection) -> Result<Range<u64>, LoadError> {
    fit_words(plan, connection).map_err(LoadError::Unfit)
}

fn fit_words(plan: &Plan, connection: &Connection) -> Result<Range<u64>, String> {
    let link = &connection.link;
    let work = &plan.workload;
    let lacks = |flag| !link.flags.contains(flag);
    if work.pattern.writes() && !lacks(TransmissionFlags::READ_ONLY) {
        return Err("the export is read-only: use --rw read or --rw randread".to_owned());
    }
    if work.pattern.trims() && (lacks(TransmissionFlags::SEND_TRIM) || !lacks(TransmissionFlags::READ_ONLY)) {
        return Err(
            "the export takes no TRIM: use another --rw, or serve it so that it can be trimmed".to_owned()
        );
    }
    if work.fua && lacks(TransmissionFlags::SEND_FUA) {
        return Err("the server does not offer FUA: leave out --fua, or use --fsync 1".to_owned());
    }
    if work.fsync > 0 && lacks(TransmissionFlags::SEND_FLUSH) {
        return Err("the server does not offer FLUSH: leave out --fsync".to_owned());
    }
    let window = window(plan, link.size)?;
    let sizes = link.block.unwrap_or_default();
    let largest = work.sizes.largest();
    if u64::from(largest) > window.end - window.start {
        return Err(format!(
            "the window has {} bytes, less than one request of {largest}: use a smaller --bs or a larger --size",
            window.end - window.start
        ));
    }
    // A trim carries no data: the maximum is about payloads.
    if largest > sizes.maximum && !work.pattern.trims() {
        return Err(format!("--bs {largest} is over the server's maximum of {} bytes", sizes.maximum));
    }
    if let Some(size) = work.sizes.each().find(|size| size % sizes.minimum != 0) {
        return Err(format!(
            "--bs {size} is no multiple of the server's smallest block, {} bytes",
            sizes.minimum
        ));
    }
    if window.start % u64::from(sizes.minimum) != 0 {
        return Err(format!(
            "--offset {} is no multiple of the server's smallest block, {} bytes",
            window.start, sizes.minimum
        ));
    }
    let several = plan.connections > 1 && lacks(TransmissionFlags::CAN_MULTI_CONN);
    if work.verify {
        if several {
            return Err(
                "--verify with several connections needs a server that lets each see what another wrote \
                (CAN_MULTI_CONN), and this one does not promise it: use --numjobs 1"
                    .to_owned(),
            );
        }
        fit_verify(plan, &window)?;
    } else if several {
        tracing::warn!("the server does not promise that several connections see one another's writes");
    }
    Ok(window)
}

fn window(plan: &Plan, export: u64) -> Result<Range<u64>, String> {
    let work = &plan.workload;
    let Some(rest) = export.checked_sub(work.offset).filter(|rest| *rest > 0) else {
        return Err(format!("--offset {} is not inside the export, which has {export} bytes", work.offset));
    };
    match work.size {
        Some(size) if size > rest => Err(format!(
            "--size {size} from --offset {} ends beyond the export, which has {export} bytes: at most --size {rest}",
            work.offset
        )),
        size => Ok(work.offset..work.offset + size.unwrap_or(rest)),
    }
}

fn fit_verify(plan: &Plan, window: &Range<u64>) -> Result<(), String> {
    let work = &plan.workload;
    let block = work.sizes.smallest();
    if block < BLOCK_MIN {
        return Err(format!("--verify needs blocks of at least {BLOCK_MIN} bytes, and --bs says {block}"));
    }
    if let Some(size) = work.sizes.each().find(|size| size % block != 0) {
        return Err(format!(
            "--verify needs sizes that are multiples of the smallest: {size} is none of {block}"
        ));
    }
    let blocks = (window.end - window.start) / u64::from(block);
    if blocks > VERIFIED_BLOCKS_MAX {
        return Err(format!(
            "--verify keeps at most {VERIFIED_BLOCKS_MAX} blocks in mind, and the window has {blocks}: use --size {}",
            VERIFIED_BLOCKS_MAX * u64::from(block)
        ));
    }
    let in_flight = u64::from(work.sizes.largest()) * u64::from(plan.iodepth) * u64::from(plan.connections);
    if in_flight > VERIFIED_IN_FLIGHT_MAX {
        return Err(format!(
            "--verify would hold {in_flight} bytes in flight (bs x iodepth x numjobs), more than {VERIFIED_IN_FLIGHT_MAX}"
        ));
    }
    Ok(())
}
