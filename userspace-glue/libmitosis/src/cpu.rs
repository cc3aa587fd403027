//! What this processor offers to programs (descriptor.md §3.1).

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use mitosis_core::descriptor::identity::CpuidRegister;
use mitosis_core::descriptor::CpuFeatures;

/// Leaf 1, ECX: the kernel has enabled XGETBV.
const OSXSAVE: u32 = 1 << 27;

fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let greatest = __cpuid_count(leaf & 0x8000_0000, 0).eax;
    if greatest < leaf {
        return [0; 4];
    }
    let answer = __cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// The features of the processor that this runs on.
pub fn features() -> CpuFeatures {
    let mut features = CpuFeatures::default();
    let mut places = features.0.iter_mut();
    for (source, place) in CpuFeatures::SOURCES.iter().zip(&mut places) {
        let [eax, ebx, ecx, edx] = cpuid(source.leaf, source.subleaf);
        let word = match source.register {
            CpuidRegister::Eax => eax,
            CpuidRegister::Ebx => ebx,
            CpuidRegister::Ecx => ecx,
            CpuidRegister::Edx => edx,
        };
        *place = word & source.mask;
    }
    let [_, _, ecx, _] = cpuid(1, 0);
    if let Some(place) = places.next().filter(|_| ecx & OSXSAVE != 0) {
        // SAFETY: OSXSAVE says that the instruction exists; it reads a register and writes two.
        unsafe {
            asm!("xgetbv", in("ecx") 0, out("eax") *place, out("edx") _, options(nomem, nostack))
        };
    }
    features
}

#[cfg(test)]
mod tests {
    #[test]
    fn features_are_those_of_this_machine() {
        let features = super::features();
        assert_eq!(features, super::features());
        // Bit 13 of leaf 1, ECX: CMPXCHG16B, which Linux calls cx16.
        let named = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        for (name, word, bit) in [("cx16", 0, 13), ("avx2", 1, 5), ("abm", 5, 5)] {
            let listed = named.split_ascii_whitespace().any(|flag| flag == name);
            assert_eq!(features.0[word] & 1 << bit != 0, listed, "{name}");
        }
    }
}
