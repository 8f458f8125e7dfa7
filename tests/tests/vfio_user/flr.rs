//! A guest's reset of the function, of which its hypervisor hears nothing.

use offmap_device_io::Function;
use offmap_tests::served::{ServerThread, attach};
use offmap_vfio_user::VfioUser;
use offmap_vfio_user::wire::{Command, IRQ_ACTION_TRIGGER, IRQ_DATA_NONE, MSIX_IRQ, SetIrqsBody};
use zerocopy::IntoBytes;

/// Where the command register and the first capability's offset stand.
const COMMAND: u16 = 0x04;
const CAPABILITIES: u16 = 0x34;
/// The PCI Express capability.
const EXPRESS: u8 = 0x10;

fn bytes<const N: usize>(function: &VfioUser, offset: u16) -> [u8; N] {
    let mut bytes = [0; N];
    function.config_read(offset, &mut bytes).unwrap();
    bytes
}

/// Initiates a function-level reset through config space.
fn flr(function: &VfioUser) {
    let [mut at] = bytes::<1>(function, CAPABILITIES);
    while bytes::<1>(function, at.into())[0] != EXPRESS {
        [at] = bytes::<1>(function, u16::from(at) + 1);
        assert_ne!(at, 0, "the function has a PCI Express capability");
    }
    let control = u16::from(at) + 8;
    let word = u16::from_le_bytes(bytes(function, control)) | 1 << 15;
    function.config_write(control, &word.to_le_bytes()).unwrap();
}

/// Has the device raise the vector, as a bus master that may send messages.
fn raise(function: &VfioUser, vector: u32) {
    function.config_write(COMMAND, &[0b110]).unwrap();
    let body = SetIrqsBody {
        argsz: (size_of::<SetIrqsBody>() as u32).into(),
        flags: (IRQ_DATA_NONE | IRQ_ACTION_TRIGGER).into(),
        index: MSIX_IRQ.into(),
        start: vector.into(),
        count: 1.into(),
    };
    let (command, room) = (Command::DEVICE_SET_IRQS, size_of::<SetIrqsBody>());
    let raised = function
        .client()
        .call(command, &[body.as_bytes()], &[], room);
    raised.unwrap();
}

#[test]
fn a_function_level_reset_leaves_interrupts_routed() {
    let server = ServerThread::spawn(Default::default());
    let function = attach(&server.path());
    let irq = function.enable_vector(3).unwrap();
    raise(&function, 3);
    assert!(irq.take().unwrap());
    for _ in 0..2 {
        flr(&function);
        assert_eq!(bytes::<1>(&function, COMMAND), [0], "it was reset");
        raise(&function, 3);
        assert!(irq.take().unwrap(), "QEMU does not route it again");
        raise(&function, 2);
        assert!(!irq.take().unwrap());
    }
    // A driver's reset silences them all.
    function.reset().unwrap();
    raise(&function, 3);
    assert!(!irq.take().unwrap());
}
