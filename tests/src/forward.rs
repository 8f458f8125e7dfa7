//! What a function around another one does not change.

/// The methods of [`offmap_device_io::Function`] that hand a call on to `self.inner` as it is:
/// all but those on DMA mappings and on time, which are what such functions are there for; with
/// `but map_bar` that one neither.
macro_rules! forward {
    () => {
        forward!(but map_bar);
        fn map_bar(
            &self,
            bar: u8,
            offset: BarOffset,
            len: usize,
        ) -> Result<Option<BarMapping>, IoError> {
            self.inner.map_bar(bar, offset, len)
        }
    };
    (but map_bar) => {
        fn describe(&self) -> String {
            self.inner.describe()
        }
        fn config_read(&self, offset: u16, buf: &mut [u8]) -> Result<(), IoError> {
            self.inner.config_read(offset, buf)
        }
        fn config_write(&self, offset: u16, data: &[u8]) -> Result<(), IoError> {
            self.inner.config_write(offset, data)
        }
        fn bar(&self, bar: u8) -> Result<BarInfo, IoError> {
            self.inner.bar(bar)
        }
        fn read32(&self, bar: u8, offset: BarOffset) -> Result<u32, IoError> {
            self.inner.read32(bar, offset)
        }
        fn read64(&self, bar: u8, offset: BarOffset) -> Result<u64, IoError> {
            self.inner.read64(bar, offset)
        }
        fn write32(&self, bar: u8, offset: BarOffset, value: u32) -> Result<(), IoError> {
            self.inner.write32(bar, offset, value)
        }
        fn write64(&self, bar: u8, offset: BarOffset, value: u64) -> Result<(), IoError> {
            self.inner.write64(bar, offset, value)
        }
        fn iova_ranges(&self) -> Vec<IovaRange> {
            self.inner.iova_ranges()
        }
        fn vectors(&self) -> u32 {
            self.inner.vectors()
        }
        fn enable_vector(&self, vector: u32) -> Result<Interrupt, IoError> {
            self.inner.enable_vector(vector)
        }
        fn disable_vector(&self, vector: u32) -> Result<(), IoError> {
            self.inner.disable_vector(vector)
        }
        fn reset(&self) -> Result<(), IoError> {
            self.inner.reset()
        }
        fn progress(&self) {
            self.inner.progress();
        }
        fn numa_node(&self) -> Option<u32> {
            self.inner.numa_node()
        }
        fn runs_on_caller(&self) -> bool {
            self.inner.runs_on_caller()
        }
    };
}

pub(crate) use forward;
