//! Product names of AMD's GPUs, by PCI device id: for kernels whose `product_name` is empty.

/// Names from the PCI ID repository (pci-ids.ucw.cz), vendor 1002: what labs have.
const NAMES: [(u32, &str); 40] = [
    (0x150e, "Radeon 880M/890M (Strix)"),
    (0x1586, "Radeon 8050S/8060S (Strix Halo)"),
    (0x15bf, "Radeon 780M (Phoenix)"),
    (0x1681, "Radeon 680M (Rembrandt)"),
    (0x1900, "Radeon 780M (Hawk Point)"),
    (0x66a0, "Radeon Instinct"),
    (0x66a1, "Radeon Instinct MI50"),
    (0x66af, "Radeon VII"),
    (0x6860, "Radeon Instinct MI25"),
    (0x687f, "Radeon RX Vega 56/64"),
    (0x731f, "Radeon RX 5600/5700"),
    (0x738c, "Instinct MI100"),
    (0x738e, "Instinct MI100"),
    (0x73a2, "Radeon Pro W6900X"),
    (0x73a3, "Radeon Pro W6800"),
    (0x73a5, "Radeon RX 6950 XT"),
    (0x73bf, "Radeon RX 6800/6900"),
    (0x73df, "Radeon RX 6700"),
    (0x73ff, "Radeon RX 6600"),
    (0x7408, "Instinct MI250X"),
    (0x740c, "Instinct MI250"),
    (0x740f, "Instinct MI210"),
    (0x7448, "Radeon Pro W7900"),
    (0x744c, "Radeon RX 7900"),
    (0x745e, "Radeon Pro W7800"),
    (0x7470, "Radeon Pro W7700"),
    (0x747e, "Radeon RX 7700/7800 XT"),
    (0x7480, "Radeon RX 7600"),
    (0x74a0, "Instinct MI300A"),
    (0x74a1, "Instinct MI300X"),
    (0x74a2, "Instinct MI308X"),
    (0x74a5, "Instinct MI325X"),
    (0x74a9, "Instinct MI300X HF"),
    (0x74b5, "Instinct MI300X VF"),
    (0x74b9, "Instinct MI325X VF"),
    (0x7550, "Radeon RX 9070"),
    (0x7551, "Radeon AI PRO R9700"),
    (0x7590, "Radeon RX 9050/9060 XT"),
    (0x75a0, "Instinct MI350X"),
    (0x75a3, "Instinct MI355X"),
];

/// Product name; the device id in words where the table does not have it.
pub(super) fn name(device: u32) -> String {
    match NAMES.iter().find(|(id, _)| *id == device) {
        Some((_, name)) => format!("AMD {name}"),
        None => format!("AMD GPU {device:#06x}"),
    }
}
