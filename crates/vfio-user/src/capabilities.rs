//! What the two sides tell each other in VERSION: JSON, with everything in it optional.

use serde::{Deserialize, Serialize};

/// Bytes of data in one message, unless a side says otherwise.
pub const DATA_BYTES: u32 = 1 << 20;
/// File descriptors in one message that are taken here. QEMU accepts no server that says more.
pub const MAX_FDS: usize = 16;
/// File descriptors in one message that a side which says nothing takes.
const DEFAULT_FDS: u32 = 1;
/// The page size of DMA mappings, in bytes.
const PAGE_SIZES: u64 = 4096;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Document {
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities>,
}

/// What a side says of itself. Names that are not known are passed over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Capabilities {
    /// File descriptors that it takes in one message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_msg_fds: Option<u32>,
    /// Bytes of data that it takes in one message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_data_xfer_size: Option<u32>,
    /// DMA mappings that can exist at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_dma_maps: Option<u64>,
    /// Page sizes of DMA mappings, or'ed together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgsizes: Option<u64>,
    /// Whether it knows REGION_WRITE_MULTI.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_multiple: Option<bool>,
    /// Whether it knows DEVICE_GET_REGION_IO_FDS. A name of ours: there are servers that end the
    /// connection when they are asked what they do not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region_io_fds: Option<bool>,
    /// What it says of migration; read so that what is no object is refused.
    #[serde(skip_serializing)]
    migration: Option<Migration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Migration {
    #[serde(rename = "pgsize")]
    _page_size: Option<u64>,
}

impl Capabilities {
    /// What our client says.
    pub fn of_client() -> Self {
        Self {
            max_msg_fds: Some(MAX_FDS as u32),
            max_data_xfer_size: Some(DATA_BYTES),
            max_dma_maps: Some(u64::from(u32::MAX)),
            pgsizes: Some(PAGE_SIZES),
            region_io_fds: Some(true),
            ..Self::default()
        }
    }

    /// What our server answers a client that said this: no more than it has heard of.
    pub fn of_server(client: &Self, max_dma_maps: u64) -> Self {
        Self {
            max_msg_fds: Some(MAX_FDS as u32),
            max_data_xfer_size: Some(DATA_BYTES),
            // QEMU leaves a server that says more than itself.
            max_dma_maps: client.max_dma_maps.map(|theirs| theirs.min(max_dma_maps)),
            pgsizes: client.pgsizes.map(|_| PAGE_SIZES),
            write_multiple: client.write_multiple.filter(|known| *known),
            region_io_fds: client.region_io_fds.filter(|known| *known),
            migration: None,
        }
    }

    /// File descriptors that the side takes in one message.
    pub fn fds(&self) -> u32 {
        self.max_msg_fds.unwrap_or(DEFAULT_FDS)
    }

    /// Bytes of data that the side takes in one message.
    pub fn data_bytes(&self) -> u32 {
        self.max_data_xfer_size.unwrap_or(DATA_BYTES)
    }

    /// Reads what follows the version numbers: nothing, or JSON with a NUL at its end.
    ///
    /// # Errors
    ///
    /// A sentence that says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Some((last, json)) = bytes.split_last() else {
            return Ok(Self::default());
        };
        if *last != 0 {
            return Err("the capabilities do not end with a NUL".into());
        }
        let document: Document = serde_json::from_slice(json)
            .map_err(|e| format!("the capabilities are no such JSON as there should be: {e}"))?;
        Ok(document.capabilities.unwrap_or_default())
    }

    /// The JSON that says it, with a NUL at its end.
    pub fn to_bytes(&self) -> Vec<u8> {
        let document = Document {
            capabilities: Some(self.clone()),
        };
        // Numbers and strings only: nothing in it can fail to be written.
        let mut json = serde_json::to_vec(&document).unwrap_or_else(|_| b"{}".to_vec());
        json.push(0);
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read_back() {
        let client = Capabilities::of_client();
        assert_eq!(Capabilities::parse(&client.to_bytes()), Ok(client.clone()));
        let server = Capabilities::of_server(&client, 7);
        assert_eq!(
            (server.max_dma_maps, server.write_multiple),
            (Some(7), None)
        );
        assert_eq!(server.region_io_fds, Some(true));
        assert_eq!(Capabilities::parse(&server.to_bytes()), Ok(server));
    }

    #[test]
    fn silence_means_the_defaults_and_the_answer_is_no_longer_than_the_question() {
        for silent in [
            &b""[..],
            b"{}\0",
            b"{\"capabilities\": {}}\0",
            b"{\"more\": 1}\0",
        ] {
            let said = Capabilities::parse(silent).unwrap();
            assert_eq!((said.fds(), said.data_bytes()), (1, 1 << 20));
            let answer = Capabilities::of_server(&said, 7);
            assert_eq!((answer.max_dma_maps, answer.pgsizes), (None, None));
            assert_eq!(answer.region_io_fds, None);
        }
    }

    #[test]
    fn qemu_is_understood() {
        let said = Capabilities::parse(
            b"{\"capabilities\": {\"max_msg_fds\": 8, \"max_data_xfer_size\": 1048576, \
              \"pgsizes\": 4096, \"max_dma_maps\": 65535, \"write_multiple\": true, \
              \"migration\": {\"pgsize\": 4096}}}\0",
        )
        .unwrap();
        assert_eq!(said.fds(), 8);
        let answer = Capabilities::of_server(&said, 1 << 20);
        assert_eq!(answer.write_multiple, Some(true));
        assert_eq!(answer.max_dma_maps, Some(65_535));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for wrong in [
            &b"{}"[..],
            b"{\0",
            b"\"\0",
            b"23\0",
            b"\0",
            b"{\"capabilities\": \"23\"}\0",
            b"{\"capabilities\": {\"max_msg_fds\": \"foo\"}}\0",
            b"{\"capabilities\": {\"max_msg_fds\": -1}}\0",
            b"{\"capabilities\": {\"region_io_fds\": 1}}\0",
            b"{\"capabilities\": {\"max_data_xfer_size\": 1e30}}\0",
            b"{\"capabilities\": {\"migration\": \"23\"}}\0",
            b"{\"capabilities\": {\"migration\": {\"pgsize\": \"foo\"}}}\0",
            b"{\"capabilities\": {}}\0\0",
            b"\xff\xfe\0",
        ] {
            let read = Capabilities::parse(wrong);
            assert!(read.is_err(), "{:?}: {read:?}", wrong.escape_ascii());
        }
        // serde_json bounds the depth; the stack is safe.
        let mut deep = vec![b'['; 1 << 18];
        deep.push(0);
        assert!(Capabilities::parse(&deep).is_err());
    }
}
