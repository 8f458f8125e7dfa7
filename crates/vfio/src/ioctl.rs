//! The system calls of VFIO whose errors must be seen, or which `vfio-ioctls` does not have.
//!
//! Unsafe: ioctl takes addresses.
#![allow(unsafe_code, reason = "see above")]

use offmap_device_io::{Iova, IovaRange};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

const VFIO: libc::Ioctl = 0x3b00;
const DEVICE_SET_IRQS: libc::Ioctl = VFIO | 110;
const DEVICE_RESET: libc::Ioctl = VFIO | 111;
const IOMMU_GET_INFO: libc::Ioctl = VFIO | 112;
#[cfg(feature = "cdev")]
const IOAS_IOVA_RANGES: libc::Ioctl = VFIO | 0x84;

const IRQ_DATA_NONE: u32 = 1;
const IRQ_DATA_EVENTFD: u32 = 1 << 2;
const IRQ_ACTION_TRIGGER: u32 = 1 << 5;
/// Bytes of `struct vfio_irq_set` before its data.
const IRQ_SET_BYTES: usize = 20;

/// Bit in the flags of `struct vfio_iommu_type1_info`: capabilities follow.
const INFO_CAPS: u32 = 1 << 1;
const CAP_IOVA_RANGE: u16 = 1;
/// Bytes of `struct vfio_iommu_type1_info` that are asked for first.
const INFO_BYTES: usize = 24;
/// More than any kernel tells, in bytes.
const INFO_MAX: usize = 1 << 20;

fn done(rc: libc::c_int) -> io::Result<libc::c_int> {
    match rc {
        -1 => Err(io::Error::last_os_error()),
        rc => Ok(rc),
    }
}

/// Signals these eventfds for interrupts from `start` on; −1 stands for none.
pub(crate) fn set_irqs(
    device: BorrowedFd<'_>,
    index: u32,
    start: u32,
    fds: &[RawFd],
) -> io::Result<()> {
    let flags = IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER;
    irqs(device, index, flags, start, fds.len() as u32, fds)
}

/// Switches all interrupts of a kind off.
pub(crate) fn no_irqs(device: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    irqs(device, index, IRQ_DATA_NONE | IRQ_ACTION_TRIGGER, 0, 0, &[])
}

fn irqs(
    device: BorrowedFd<'_>,
    index: u32,
    flags: u32,
    start: u32,
    count: u32,
    fds: &[RawFd],
) -> io::Result<()> {
    let bytes = IRQ_SET_BYTES + size_of_val(fds);
    let mut set = vec![bytes as u32, flags, index, start, count];
    set.extend(fds.iter().map(|fd| *fd as u32));
    // SAFETY: the kernel reads `argsz` bytes, which is what `set` has, and keeps none of them.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), DEVICE_SET_IRQS, set.as_ptr()) };
    match done(rc)? {
        0 => Ok(()),
        // As many as there are; fewer than were asked for.
        _ => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
    }
}

/// Resets the device. May take as long as the kernel waits for it.
pub(crate) fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes no argument.
    let rc = unsafe { libc::ioctl(device.as_raw_fd(), DEVICE_RESET) };
    done(rc).map(|_| ())
}

/// The IOVAs that a container's IOMMU can map; `None` where the kernel does not say.
pub(crate) fn container_ranges(container: BorrowedFd<'_>) -> io::Result<Option<Vec<IovaRange>>> {
    let mut bytes = INFO_BYTES;
    loop {
        let mut info = vec![0u64; bytes.div_ceil(8)];
        info[0] = bytes as u64;
        // SAFETY: the kernel writes no more than `argsz` bytes, which is what `info` has.
        let rc = unsafe { libc::ioctl(container.as_raw_fd(), IOMMU_GET_INFO, info.as_mut_ptr()) };
        done(rc)?;
        let info: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let needs = word(&info, 0).unwrap_or(0) as usize;
        if needs > bytes && needs <= INFO_MAX {
            bytes = needs;
            continue;
        }
        return Ok(ranges(&info));
    }
}

/// The ranges that `struct vfio_iommu_type1_info` lists.
fn ranges(info: &[u8]) -> Option<Vec<IovaRange>> {
    if word(info, 4)? & INFO_CAPS == 0 {
        return None;
    }
    let mut at = word(info, 16)? as usize;
    // Every capability has a header of 8 bytes, so there are no more than that.
    for _ in 0..info.len() / 8 {
        if at == 0 {
            return None;
        }
        let id = word(info, at)? as u16;
        if id == CAP_IOVA_RANGE {
            let count = word(info, at + 8)? as usize;
            let listed = info.get(at + 16..)?.chunks_exact(16).take(count);
            return Some(listed.filter_map(range).collect());
        }
        at = word(info, at + 4)? as usize;
    }
    None
}

fn range(pair: &[u8]) -> Option<IovaRange> {
    let (first, last) = pair.split_first_chunk::<8>()?;
    let first = u64::from_ne_bytes(*first);
    let last = u64::from_ne_bytes(last.try_into().ok()?);
    (first <= last).then_some(IovaRange {
        first: Iova(first),
        last: Iova(last),
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// The IOVAs that an I/O address space of `/dev/iommu` can map.
#[cfg(feature = "cdev")]
pub(crate) fn ioas_ranges(iommufd: BorrowedFd<'_>, ioas: u32) -> io::Result<Vec<IovaRange>> {
    const MOST: usize = 256;
    let mut found = vec![0u64; 2 * MOST];
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    // size and ioas_id, num_iovas and reserved, the address of the list, the alignment.
    let mut ask = [
        pair(32, ioas),
        pair(MOST as u32, 0),
        found.as_mut_ptr() as u64,
        0,
    ];
    // SAFETY: the kernel writes the structure, of which `ask` has all, and at most `MOST` pairs
    // to `found`, which lives through the call.
    let rc = unsafe { libc::ioctl(iommufd.as_raw_fd(), IOAS_IOVA_RANGES, ask.as_mut_ptr()) };
    done(rc)?;
    let count = (ask[1] as u32 as usize).min(MOST);
    let pairs = found.chunks_exact(2).take(count);
    Ok(pairs
        .filter(|pair| pair[0] <= pair[1])
        .map(|pair| IovaRange {
            first: Iova(pair[0]),
            last: Iova(pair[1]),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(flags: u32, words: &[u32]) -> Vec<u8> {
        let mut all = vec![0, flags, 0, 0, 24, 0];
        all.extend_from_slice(words);
        all.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn ranges_are_found_behind_other_capabilities() {
        let info = info(
            INFO_CAPS,
            &[
                3 | 1 << 16,
                32, // another capability; the next is at 32
                u32::from(CAP_IOVA_RANGE) | 1 << 16,
                0,
                2,
                0, // two ranges
                0x1000,
                0,
                0xfedf_ffff,
                0, //
                0xfef0_0000,
                0,
                0xffff_ffff,
                0x7f,
            ],
        );
        let found = ranges(&info).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].first.0, found[0].last.0), (0x1000, 0xfedf_ffff));
        assert_eq!(found[1].last.0, 0x7f_ffff_ffff);
    }

    #[test]
    fn what_is_cut_off_or_goes_round_is_none() {
        assert!(ranges(&info(0, &[1, 0, 1, 0])).is_none());
        // A list that points at itself.
        assert!(ranges(&info(INFO_CAPS, &[3, 24])).is_none());
        assert!(ranges(&info(INFO_CAPS, &[3, 4000])).is_none());
        let short = info(INFO_CAPS, &[1, 0, 9, 0, 0x1000, 0, 0x2000, 0]);
        assert_eq!(ranges(&short).unwrap().len(), 1);
        assert!(ranges(&[]).is_none());
    }

    #[test]
    fn a_descriptor_that_is_no_device_is_an_error() {
        use std::os::fd::AsFd;
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(reset(file.as_fd()).is_err());
        assert!(set_irqs(file.as_fd(), 2, 0, &[-1]).is_err());
        assert!(container_ranges(file.as_fd()).is_err());
    }
}
