//! What a client leaves for the next one: nothing.

use crate::malformed::{access, irqs, map};
use crate::raw::{Raw, server};
use offmap_abi::regs;
use offmap_device_io::{DmaBuffer, DmaPlacement, Interrupt};
use offmap_vfio_user::wire::{
    CONFIG_REGION, Command, IRQ_ACTION_TRIGGER, IRQ_DATA_EVENTFD, IRQ_DATA_NONE, MSIX_IRQ,
};
use zerocopy::IntoBytes;

/// Bytes of config space that a host writes: the command register, and the interrupt line,
/// which is but a byte to be kept.
const COMMAND: u64 = 4;
const LINE: u64 = 0x3c;
/// Bytes of registers, from CONTROL on, by which a host sets the device up.
const SET_UP: u32 = 0x40;

fn write(raw: &mut Raw, region: u32, offset: u64, data: &[u8]) {
    let body = [access(region, offset, data.len() as u32).as_bytes(), data].concat();
    raw.good(Command::REGION_WRITE, &body, &[]);
}

fn read(raw: &mut Raw, region: u32, offset: u64, count: u32) -> Vec<u8> {
    let body = access(region, offset, count);
    let reply = raw.good(Command::REGION_READ, body.as_bytes(), &[]);
    reply.body[16..].to_vec()
}

#[test]
fn nothing_is_left_for_the_next_client() {
    let server = server();
    let memory = DmaBuffer::new(0x4000, DmaPlacement::default()).unwrap();
    let irq = Interrupt::new().unwrap();
    let bar = u32::from(regs::BAR_REGISTERS);
    let mut firsts = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::greeted(&server.path());
        // As the last one found it, not as it left it.
        let found = [
            read(&mut raw, CONFIG_REGION, COMMAND, 2),
            read(&mut raw, CONFIG_REGION, LINE, 1),
            read(&mut raw, bar, regs::DOORBELLS, 8),
            read(&mut raw, bar, regs::CONTROL, SET_UP),
        ];
        firsts.push(found);
        assert_eq!(firsts[0], *firsts.last().unwrap());
        assert_eq!(server.device().dma_mapped().unwrap(), (0, 0));
        // The last one's eventfd hears nothing of this one's interrupts.
        write(&mut raw, CONFIG_REGION, COMMAND, &[6, 0]);
        let trigger = irqs(IRQ_DATA_NONE | IRQ_ACTION_TRIGGER, MSIX_IRQ, 0, 1);
        raw.good(Command::DEVICE_SET_IRQS, trigger.as_bytes(), &[]);
        assert!(!irq.take().unwrap(), "an interrupt of another client");

        let body = map(0x1_0000, 0x4000, 0);
        raw.good(Command::DMA_MAP, body.as_bytes(), &[memory.fd()]);
        write(&mut raw, CONFIG_REGION, LINE, &[0x55]);
        write(&mut raw, bar, regs::DOORBELLS, &[9; 8]);
        write(&mut raw, bar, regs::ADMIN_SQ, &0x1_0000u64.to_le_bytes());
        write(
            &mut raw,
            bar,
            regs::WINDOW_BASE,
            &0x10_0000u64.to_le_bytes(),
        );
        let route = irqs(IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER, MSIX_IRQ, 0, 1);
        raw.good(Command::DEVICE_SET_IRQS, route.as_bytes(), &[irq.fd()]);
        raw.good(Command::DEVICE_SET_IRQS, trigger.as_bytes(), &[]);
        assert!(irq.take().unwrap());
    }
}
