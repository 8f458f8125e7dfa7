//! Host memory that commands name.

use offmap_abi::submission::{BatchBody, ElementBody, IovaRef};
use offmap_abi::{AdminOpcode, IoOpcode, QueueId, Submission, SubmissionFlags};

/// Host memory that a command names: all of it, or what the device may write.
pub(super) fn ranges(queue: QueueId, command: &Submission, all: bool) -> Vec<(u64, u64)> {
    let mut found = Vec::new();
    if queue.is_admin() {
        return admin_ranges(command, all);
    }
    let opcode = IoOpcode(command.opcode);
    if opcode.is_batch() {
        let body: BatchBody = command.body();
        let count = u64::from(body.count.get());
        let dumps = matches!(opcode, IoOpcode::BatchDump | IoOpcode::BatchDumpDelete);
        let keys = (body.keys.get(), count * u64::from(body.key_len.get()));
        let values = (body.values.get(), count * u64::from(body.value_len.get()));
        if all || dumps {
            found.push(keys);
        }
        if all || dumps || opcode == IoOpcode::BatchLookup {
            found.push(values);
        }
        if !dumps {
            found.push((body.statuses.get(), count * 2));
        }
        found.retain(|(iova, len)| *iova != 0 && *len != 0);
        return found;
    }
    let body: ElementBody = command.body();
    let flags = command.flags();
    let key_len = u64::from(body.key_len.get());
    if all && !flags.contains(SubmissionFlags::KEY_INLINE) && key_len > 0 {
        found.push((IovaRef::iova_of(&body.key), key_len));
    }
    let value_len = u64::from(body.value_len.get());
    if (all || opcode != IoOpcode::Update)
        && !flags.contains(SubmissionFlags::VALUE_INLINE)
        && value_len > 0
    {
        found.push((IovaRef::iova_of(&body.value), value_len));
    }
    found
}

fn admin_ranges(command: &Submission, all: bool) -> Vec<(u64, u64)> {
    use offmap_abi::admin::{IdentifyBody, MapCreateBody};
    match AdminOpcode(command.opcode) {
        AdminOpcode::Identify => {
            let body: IdentifyBody = command.body();
            vec![(body.iova.get(), u64::from(body.len.get()))]
        }
        AdminOpcode::MapCreate if all => {
            let body: MapCreateBody = command.body();
            vec![(body.attr.get(), u64::from(body.attr_len.get()))]
        }
        _ => Vec::new(),
    }
}
