//! MSI-X: table, masks, pending bits and delivery (PCI 3.0 §6.8).
//!
//! A vector is delivered by signalling the [`Interrupt`] that the transport has routed it to;
//! the message address and data in its table entry are the host's and are kept, not used, just
//! as with a vector that a hypervisor has routed by itself.

use offmap_abi::regs;
use offmap_device_io::{Interrupt, IoError};

/// Size of a table entry in bytes.
pub const ENTRY_BYTES: u64 = 16;
/// Most vectors that a function can have: the table size of the capability has 11 bits.
pub const MAX_VECTORS: u16 = 2048;
const _: () = assert!(MAX_VECTORS as u64 * ENTRY_BYTES <= regs::MSIX_PBA - regs::MSIX_TABLE);

/// Mask bit in an entry's vector control word.
const CONTROL_MASKED: u32 = 1;

/// A table entry, as its four words: address low and high, data, vector control.
type Entry = [u32; 4];
/// After reset a vector is masked.
const ENTRY_RESET: Entry = [0, 0, 0, CONTROL_MASKED];

/// The MSI-X state of the function.
#[derive(Debug)]
pub struct Msix {
    table: Vec<Entry>,
    pending: Vec<u64>,
    routes: Vec<Option<Interrupt>>,
    /// MSI-X is enabled, and the function may send messages.
    enabled: bool,
    /// The function mask.
    masked: bool,
}

impl Msix {
    /// MSI-X with that many vectors, at most [`MAX_VECTORS`], all masked and going nowhere.
    pub fn new(vectors: u16) -> Self {
        let n = usize::from(vectors);
        Self {
            table: vec![ENTRY_RESET; n],
            pending: vec![0; n.div_ceil(64)],
            routes: (0..n).map(|_| None).collect(),
            enabled: false,
            masked: false,
        }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u32 {
        self.table.len() as u32
    }

    /// Takes over what config space says: whether messages may be sent, and the function mask.
    pub fn set_control(&mut self, enabled: bool, masked: bool) {
        self.enabled = enabled;
        self.masked = masked;
        self.deliver_pending();
    }

    /// Raises a vector: it is delivered, or becomes pending while masked. Without MSI-X
    /// enabled there is nowhere to send it, and it is dropped.
    pub fn raise(&mut self, vector: u32) {
        let v = vector as usize;
        if !self.enabled || v >= self.table.len() {
            return;
        }
        if self.is_masked(v) {
            self.pending[v / 64] |= 1 << (v % 64);
        } else {
            self.send(v);
        }
    }

    /// Routes a vector to a new [`Interrupt`] and unmasks it.
    ///
    /// # Errors
    ///
    /// [`IoError::NoVector`], or what [`Interrupt::new`] returns.
    pub fn route(&mut self, vector: u32) -> Result<Interrupt, IoError> {
        self.checked(vector)?;
        let interrupt = Interrupt::new()?;
        self.route_to(vector, interrupt.try_clone()?)?;
        Ok(interrupt)
    }

    /// Routes a vector to an [`Interrupt`] that somebody else made, and unmasks it.
    ///
    /// # Errors
    ///
    /// [`IoError::NoVector`].
    pub fn route_to(&mut self, vector: u32, interrupt: Interrupt) -> Result<(), IoError> {
        let v = self.checked(vector)?;
        self.routes[v] = Some(interrupt);
        self.pending[v / 64] &= !(1 << (v % 64));
        self.table[v][3] &= !CONTROL_MASKED;
        Ok(())
    }

    /// Silences and masks a vector. Returns whether any vector is still routed.
    ///
    /// # Errors
    ///
    /// [`IoError::NoVector`].
    pub fn silence(&mut self, vector: u32) -> Result<bool, IoError> {
        let v = self.checked(vector)?;
        self.routes[v] = None;
        self.table[v][3] |= CONTROL_MASKED;
        self.pending[v / 64] &= !(1 << (v % 64));
        Ok(self.routes.iter().any(Option::is_some))
    }

    /// As [`Msix::raise`], for a vector that there may not be.
    ///
    /// # Errors
    ///
    /// [`IoError::NoVector`].
    pub fn raise_checked(&mut self, vector: u32) -> Result<(), IoError> {
        self.checked(vector)?;
        self.raise(vector);
        Ok(())
    }

    /// Masks a vector in its table entry, or unmasks it, which delivers what is pending.
    ///
    /// # Errors
    ///
    /// [`IoError::NoVector`].
    pub fn set_masked(&mut self, vector: u32, masked: bool) -> Result<(), IoError> {
        let v = self.checked(vector)?;
        let control = self.table[v][3] & !CONTROL_MASKED;
        self.table[v][3] = control | if masked { CONTROL_MASKED } else { 0 };
        self.deliver_pending();
        Ok(())
    }

    /// Forgets everything but the routes, whose vectors are unmasked; whether there are any.
    pub fn reset_but_routes(&mut self) -> bool {
        let routes = std::mem::take(&mut self.routes);
        self.reset();
        for (entry, _) in self
            .table
            .iter_mut()
            .zip(&routes)
            .filter(|(_, to)| to.is_some())
        {
            entry[3] &= !CONTROL_MASKED;
        }
        self.routes = routes;
        self.routes.iter().any(Option::is_some)
    }

    /// Masks, forgets and silences everything.
    pub fn reset(&mut self) {
        self.table.fill(ENTRY_RESET);
        self.pending.fill(0);
        self.routes.clear();
        self.routes.resize_with(self.table.len(), || None);
        self.enabled = false;
        self.masked = false;
    }

    /// Reads the table's 4-byte word at `offset` of it; all ones past its end.
    pub fn read_table(&self, offset: u64) -> u32 {
        let entry = usize::try_from(offset / ENTRY_BYTES).ok();
        match entry.and_then(|e| self.table.get(e)) {
            Some(words) => words[(offset % ENTRY_BYTES / 4) as usize],
            None => u32::MAX,
        }
    }

    /// Writes the table's 4-byte word at `offset` of it. Unmasking delivers what is pending.
    pub fn write_table(&mut self, offset: u64, value: u32) {
        let entry = usize::try_from(offset / ENTRY_BYTES).ok();
        let Some(words) = entry.and_then(|e| self.table.get_mut(e)) else {
            return;
        };
        match (offset % ENTRY_BYTES / 4) as usize {
            // Message addresses are 4-byte aligned.
            0 => words[0] = value & !3,
            3 => words[3] = value & CONTROL_MASKED,
            i => words[i] = value,
        }
        self.deliver_pending();
    }

    /// Reads the pending bits' 4-byte word at `offset` of them; all ones past their end.
    pub fn read_pending(&self, offset: u64) -> u32 {
        let word = usize::try_from(offset / 8).ok();
        match word.and_then(|w| self.pending.get(w)) {
            Some(bits) => (bits >> (offset % 8 / 4 * 32)) as u32,
            None => u32::MAX,
        }
    }

    fn is_masked(&self, vector: usize) -> bool {
        self.masked || self.table[vector][3] & CONTROL_MASKED != 0
    }

    fn deliver_pending(&mut self) {
        if !self.enabled {
            return;
        }
        for w in 0..self.pending.len() {
            let mut bits = self.pending[w];
            while bits != 0 {
                let v = w * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if !self.is_masked(v) {
                    self.pending[w] &= !(1 << (v % 64));
                    self.send(v);
                }
            }
        }
    }

    fn send(&self, vector: usize) {
        if let Some(interrupt) = &self.routes[vector] {
            // A message is a posted write: its sender never learns that it was lost, and the
            // host has a deadline on everything that it waits for.
            let _ = interrupt.signal();
        }
    }

    fn checked(&self, vector: u32) -> Result<usize, IoError> {
        let vectors = self.vectors();
        if vector < vectors {
            Ok(vector as usize)
        } else {
            Err(IoError::NoVector { vector, vectors })
        }
    }
}
