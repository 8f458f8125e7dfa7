//! `offmap device list`: the functions that are such a NIC, and those that are bound to vfio-pci.

use crate::device::DeviceError;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use offmap_abi::regs::{PCI_DEVICE_ID, PCI_VENDOR_ID};
use offmap_vfio::sysfs::{PciFunction, Sysfs};
use serde::Serialize;

/// A line of the list.
#[derive(Serialize)]
struct Listed {
    /// PCI address.
    address: String,
    /// Vendor and device ID, in hexadecimal digits.
    id: String,
    /// Whether it is a NIC of this ABI, by its ID.
    smartnic: bool,
    driver: Option<String>,
    iommu_group: Option<u32>,
    numa_node: Option<u32>,
    /// What `--device` takes, once it is bound to vfio-pci.
    device: Option<String>,
}

impl From<PciFunction> for Listed {
    fn from(function: PciFunction) -> Self {
        let usable = function.is_vfio() && !function.no_iommu;
        Self {
            id: format!("{:04x}:{:04x}", function.vendor, function.device),
            smartnic: is_smartnic(&function),
            device: usable.then(|| format!("vfio:{}", function.address)),
            address: function.address,
            driver: function.driver,
            iommu_group: function.iommu_group,
            numa_node: function.numa_node,
        }
    }
}

fn is_smartnic(function: &PciFunction) -> bool {
    (function.vendor, function.device) == (PCI_VENDOR_ID, PCI_DEVICE_ID)
}

/// The list as a table or as JSON.
pub(crate) fn list(sysfs: &Sysfs, json: bool) -> Result<String, DeviceError> {
    let all = sysfs.functions()?;
    let functions = all.len();
    let listed: Vec<Listed> = all
        .into_iter()
        .filter(|function| is_smartnic(function) || function.is_vfio())
        .map(Listed::from)
        .collect();
    if json {
        return Ok(serde_json::to_string_pretty(&listed)? + "\n");
    }
    if listed.is_empty() {
        return Ok(format!(
            "no SmartNIC ({PCI_VENDOR_ID:04x}:{PCI_DEVICE_ID:04x}) and nothing bound to vfio-pci \
             among {functions} PCI functions\n"
        ));
    }
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "address",
        "id",
        "driver",
        "IOMMU group",
        "NUMA node",
        "--device",
    ]);
    let number = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
    for one in listed {
        table.add_row([
            one.address,
            one.id,
            one.driver.unwrap_or_else(|| "-".into()),
            number(one.iommu_group),
            number(one.numa_node),
            one.device.unwrap_or_else(|| "-".into()),
        ]);
    }
    Ok(format!("{table}\n"))
}
