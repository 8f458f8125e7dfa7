//! Which maps go to a device although their creator does not say so.

/// A name pattern: `*` stands for any characters, `?` for one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Glob(String);

impl Glob {
    /// The pattern.
    pub fn new(pattern: &str) -> Self {
        Self(pattern.to_owned())
    }

    /// As it was given.
    pub fn pattern(&self) -> &str {
        &self.0
    }

    /// Whether `name` is such a name.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Where to go on when what follows the last star does not fit.
        let mut star: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(&byte) if byte == b'?' || byte == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match star {
                    Some((at, from)) => {
                        star = Some((at, from + 1));
                        p = at + 1;
                        n = from + 1;
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|&byte| byte == b'*')
    }
}

/// The rules, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// Maps of such a name go to the device of that number. The first that matches counts.
    pub globs: Vec<(Glob, usize)>,
    /// All other maps that can go to the device of that number, do.
    pub all: Option<usize>,
}

/// Where a new map goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Choice {
    /// Number of the device.
    pub(crate) device: usize,
    /// Whether the map was meant by its interface or name: a refusal is then an error, and otherwise
    /// the kernel makes the map.
    pub(crate) asked: bool,
}

impl Rules {
    /// Where a map of that name goes.
    pub(crate) fn choose(&self, name: &str) -> Option<Choice> {
        let named = self.globs.iter().find(|(glob, _)| glob.matches(name));
        let named = named.map(|&(_, device)| Choice {
            device,
            asked: true,
        });
        // libbpf makes such maps to find out what programs of the kernel may do with them.
        let probe = name.starts_with("libbpf_");
        named.or(self.all.filter(|_| !probe).map(|device| Choice {
            device,
            asked: false,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*", "flows", true),
            ("flow?", "flows", true),
            ("flow?", "flow", false),
            ("f*s", "flows", true),
            ("f*o*s", "flows", true),
            ("f*x*s", "flows", false),
            ("*ab", "aab", true),
            ("a*b*", "a-b-c", true),
            ("", "", true),
            ("", "a", false),
            ("a**", "a", true),
        ] {
            assert_eq!(
                Glob::new(pattern).matches(name),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rules = Rules {
            globs: vec![(Glob::new("a*"), 1), (Glob::new("*"), 2)],
            all: Some(0),
        };
        assert_eq!(rules.choose("ab").map(|c| c.device), Some(1));
        assert_eq!(rules.choose("b").map(|c| c.device), Some(2));
        let rules = Rules {
            globs: Vec::new(),
            all: Some(0),
        };
        let all = rules.choose("b");
        assert_eq!(all.map(|c| (c.device, c.asked)), Some((0, false)));
        assert_eq!(rules.choose("libbpf_global"), None);
        assert_eq!(Rules::default().choose("b"), None);
    }
}
