//! Overlay of ROCm SMI's answers on the kernel's list of GPUs, which is the one that counts, since it has the device
//! nodes. Pure.

use labd_gpu::{Device, Reading};

use crate::rsmi::Card;

/// Devices of the kernel, completed by the library's cards, each with its number there. A device that the library lacks
/// (an integrated GPU, a GPU that is divided into partitions) stays as it is.
pub(crate) fn devices(kernel: Vec<Device>, cards: &[Card]) -> Vec<(Device, Option<u32>)> {
    kernel
        .into_iter()
        .map(|mut device| {
            let index = cards.iter().position(|card| is(card, &device));
            if let Some(card) = index.map(|i| &cards[i]) {
                // An id must not depend on who was asked: the library's only where the kernel has none.
                if let Some(id) = card.unique_id.filter(|_| !device.id.starts_with("0x")) {
                    device.id = format!("{id:#018x}");
                }
                if let Some(name) = &card.name {
                    device.name.clone_from(name);
                }
                // A partition's memory is its share, and the library's word is of the whole GPU. Of a CPU's graphics the
                // library knows what was set apart, and not the machine's memory that it computes in.
                if let Some(bytes) = card.memory_bytes.filter(|_| device.parent.is_none()) {
                    device.memory_bytes = device.memory_bytes.max(bytes);
                }
            }
            (device, index.map(|i| i as u32))
        })
        .collect()
}

/// Reading of `device` by the library, and by the kernel where the library has none. Of a partition the library knows
/// load, memory and clocks of the whole GPU at best: there only what concerns the partition whatever the cause is taken
/// from it.
pub(crate) fn reading(device: &Device, library: Reading, kernel: Reading) -> Reading {
    let library = match device.parent {
        None => library,
        Some(_) => Reading {
            temperature_c: library.temperature_c,
            ecc_corrected: library.ecc_corrected,
            ecc_uncorrected: library.ecc_uncorrected,
            error: library.error,
            ..Reading::default()
        },
    };
    Reading {
        utilisation_percent: library.utilisation_percent.or(kernel.utilisation_percent),
        // The kernel's is more where it counts more than the library does.
        memory_used_bytes: library.memory_used_bytes.max(kernel.memory_used_bytes),
        temperature_c: library.temperature_c.or(kernel.temperature_c),
        clock_mhz: library.clock_mhz.or(kernel.clock_mhz),
        memory_clock_mhz: library.memory_clock_mhz.or(kernel.memory_clock_mhz),
        ecc_corrected: library.ecc_corrected.or(kernel.ecc_corrected),
        ecc_uncorrected: library.ecc_uncorrected.or(kernel.ecc_uncorrected),
        error: library.error.or(kernel.error),
        // The crate has none of the others.
        ..kernel
    }
}

/// Whether card and device are the same. The render node tells partitions apart, which share the GPU's PCI address.
fn is(card: &Card, device: &Device) -> bool {
    match (card.render_minor, &card.pci) {
        (Some(minor), _) => device.nodes.iter().any(|node| node.path == format!("/dev/dri/renderD{minor}")),
        (None, Some(pci)) => device.pci.as_ref() == Some(pci),
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use labd_gpu::{DeviceNode, Vendor};

    use super::*;

    fn device(id: &str, pci: &str, minor: u32) -> Device {
        Device {
            id: id.into(),
            vendor: Vendor::Amd,
            name: "kernel".into(),
            index: 0,
            memory_bytes: 1,
            pci: Some(pci.into()),
            parent: None,
            partition: None,
            instance: None,
            divided: false,
            numa_node: Some(1),
            cpu_list: None,
            nodes: vec![DeviceNode { path: format!("/dev/dri/renderD{minor}"), gid: 105 }],
        }
    }

    #[test]
    fn partitions_are_told_apart_by_their_render_nodes() {
        let kernel = vec![
            device("0x00000000000000aa", "0000:05:00.0", 128),
            device("0x00000000000000aa.1", "0000:05:00.0", 130),
        ];
        let cards =
            [130, 128].map(|minor| Card { render_minor: Some(minor), unique_id: Some(0xaa), ..Card::default() });
        let found: Vec<_> = devices(kernel, &cards).into_iter().map(|(d, i)| (d.id, i)).collect();
        assert_eq!(found, [("0x00000000000000aa".into(), Some(1)), ("0x00000000000000aa.1".into(), Some(0))]);
    }

    #[test]
    fn where_the_render_node_is_not_known_the_pci_address_says_which() {
        let cards = [Card {
            pci: Some("0000:63:00.0".into()),
            unique_id: Some(0x1234),
            name: Some("Instinct MI100".into()),
            memory_bytes: Some(32 << 30),
            ..Card::default()
        }];
        let kernel = vec![device("0000:03:00.0", "0000:03:00.0", 128), device("0000:63:00.0", "0000:63:00.0", 129)];
        let [other, (told, Some(0))] = &devices(kernel.clone(), &cards)[..] else { panic!("one of two is known") };
        assert_eq!(other, &(kernel[0].clone(), None));
        assert_eq!((told.id.as_str(), told.name.as_str()), ("0x0000000000001234", "Instinct MI100"));
        assert_eq!((told.memory_bytes, told.numa_node), (32 << 30, Some(1)));
    }

    #[test]
    fn graphics_of_a_cpu_has_the_memory_that_the_kernel_says_it_computes_in() {
        let card = Card { render_minor: Some(128), memory_bytes: Some(512 << 20), ..Card::default() };
        let gpu = Device { memory_bytes: 98 << 30, ..device("0000:c5:00.0", "0000:c5:00.0", 128) };
        let told = devices(vec![gpu.clone()], &[card]);
        assert_eq!(told[0].0.memory_bytes, 98 << 30);
        let library = Reading { memory_used_bytes: Some(1 << 20), ..Reading::default() };
        let kernel = Reading { memory_used_bytes: Some(1 << 30), ..Reading::default() };
        assert_eq!(reading(&gpu, library, kernel).memory_used_bytes, Some(1 << 30));
    }

    #[test]
    fn the_kernel_fills_what_the_library_leaves_open() {
        let library = Reading { utilisation_percent: Some(97.0), memory_used_bytes: Some(5), ..Reading::default() };
        let kernel = Reading { id: "a".into(), memory_used_bytes: Some(4), power_w: Some(250.0), ..Reading::default() };
        let mut gpu = device("a", "0000:05:00.0", 128);
        let both = reading(&gpu, library.clone(), kernel.clone());
        assert_eq!((both.id.as_str(), both.utilisation_percent), ("a", Some(97.0)));
        assert_eq!((both.memory_used_bytes, both.power_w), (Some(5), Some(250.0)));

        gpu.parent = Some("a".into());
        let both = reading(&gpu, library, kernel);
        assert_eq!((both.memory_used_bytes, both.utilisation_percent), (Some(4), None), "not the whole GPU's");
    }
}
