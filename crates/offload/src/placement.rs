//! In which tier of device memory maps are placed: by their names, since bpf(2) has no field for it.

use offmap_driver::{Driver, DriverError, Function};

/// A rule of placement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// The maps that it is for: their name, in which `*` stands for any bytes and `?` for one.
    pub maps: String,
    /// The tier: its name, or its number from 0.
    pub tier: String,
}

/// Rules with the tiers' numbers, plus one, as the device wants them.
#[derive(Debug, Default)]
pub(crate) struct Placements(Vec<(String, u32)>);

impl Placements {
    /// Finds the tiers of a device.
    ///
    /// # Errors
    ///
    /// [`DriverError::Config`] for a tier that there is not; [`DriverError::NoFeature`] for a device
    /// without tiers.
    pub(crate) fn new<F: Function>(
        driver: &Driver<F>,
        rules: &[Placement],
    ) -> Result<Self, DriverError> {
        if rules.is_empty() {
            return Ok(Self::default());
        }
        let tiers = driver.memory_info()?;
        let found = rules.iter().map(|rule| {
            let named = tiers.iter().position(|tier| {
                let end = tier.name.iter().position(|byte| *byte == 0);
                tier.name[..end.unwrap_or(tier.name.len())] == *rule.tier.as_bytes()
            });
            let numbered = || rule.tier.parse().ok().filter(|n| *n < tiers.len());
            let tier = named.or_else(numbered).ok_or(DriverError::Config {
                field: "placement",
                allowed: "of a tier that the device has, by its name or its number from 0",
            })?;
            Ok((rule.maps.clone(), tier as u32 + 1))
        });
        found.collect::<Result<_, _>>().map(Self)
    }

    /// The tier of a map of that name, NUL-padded, plus one; 0: the device chooses. The first rule counts.
    pub(crate) fn tier_of(&self, name: &[u8]) -> u32 {
        let end = name.iter().position(|byte| *byte == 0);
        let name = &name[..end.unwrap_or(name.len())];
        let rule = self
            .0
            .iter()
            .find(|(maps, _)| is_like(maps.as_bytes(), name));
        rule.map_or(0, |(_, tier)| *tier)
    }
}

/// Whether a name is like a pattern. Names have 15 bytes at most, and each byte of a pattern is looked at
/// once for each byte of a name.
fn is_like(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[from] => (at, from) = (at + 1, from + 1),
            _ => match star {
                Some((stood, reached)) => {
                    star = Some((stood, reached + 1));
                    (at, from) = (stood + 1, reached + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("flows", "flows", true),
            ("flows", "flow", false),
            ("flow", "flows", false),
            ("*", "", true),
            ("*", "anything", true),
            ("?", "", false),
            ("fl?ws", "flaws", true),
            ("*_map", "xdp_map", true),
            ("*_map", "xdp_map_2", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXcYb", false),
            ("", "", true),
            ("**", "x", true),
        ] {
            assert_eq!(
                is_like(pattern.as_bytes(), name.as_bytes()),
                fits,
                "{pattern} {name}"
            );
        }
        let rules = Placements(vec![("hot*".into(), 1), ("*".into(), 3)]);
        assert_eq!(rules.tier_of(b"hot_flows\0\0\0\0\0\0\0"), 1);
        assert_eq!(rules.tier_of(b"cold\0"), 3);
        assert_eq!(Placements::default().tier_of(b"cold\0"), 0);
    }
}
