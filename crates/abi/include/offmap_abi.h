/* The offmap device ABI for C11 and C++11.
 *
 * Generated from the sources of crates/abi; a test holds it to them, and compares what a C compiler
 * makes of it with what Rust does. docs/abi.md is the prose, whose sections (abi §) are named here.
 *
 * All fields are little-endian: offmap_le16, offmap_le32 and offmap_le64 hold their bytes in that
 * order on every machine. Unknown opcodes, statuses and flags are kept as they come.
 */
/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef OFFMAP_ABI_H
#define OFFMAP_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define OFFMAP_ASSERT(holds) static_assert(holds, #holds)
#else
#define OFFMAP_ASSERT(holds) _Static_assert(holds, #holds)
#endif

typedef uint16_t offmap_le16;
typedef uint32_t offmap_le32;
typedef uint64_t offmap_le64;

/* ---- Every byte that crosses between host and device, defined once. */

/* Major version of the ABI: a driver refuses a device whose major version differs. */
#define OFFMAP_ABI_MAJOR UINT32_C(1)

/* Minor version of the ABI: features are added under feature bits, so that a driver and a
 * device of different minor versions work together. */
#define OFFMAP_ABI_MINOR UINT32_C(0)

/* ---- Doorbells, and the notify block that replaces them (abi §4.2, §10 rules N1–N4). */

/* Bytes of the doorbells that belong to one queue pair: a cache line, so that queues of
 * different threads share none. */
#define OFFMAP_DOORBELL_STRIDE UINT64_C(0x40)

/* Offset within a queue's doorbells of the submission tail (a 64-bit register). */
#define OFFMAP_DOORBELL_SQ_TAIL UINT64_C(0)

/* Offset within a queue's doorbells of the completion head (a 64-bit register). */
#define OFFMAP_DOORBELL_CQ_HEAD UINT64_C(8)

/* Size of a notify block in bytes: one cache line that the host writes and one that the
 * device writes. It is aligned to NOTIFY_ALIGN. */
#define OFFMAP_NOTIFY_BYTES UINT32_C(0x80)

/* Alignment of a notify block, in bytes. */
#define OFFMAP_NOTIFY_ALIGN UINT64_C(0x40)

/* Offset of the shadow submission tail: a free-running 32-bit count of submissions in a
 * 64-bit word. Written by the host. */
#define OFFMAP_NOTIFY_SQ_TAIL UINT32_C(0)

/* Offset of the shadow completion head, likewise. Written by the host. */
#define OFFMAP_NOTIFY_CQ_HEAD UINT32_C(8)

/* Offset of the completion EventWord: when the host wants an interrupt. Written by the
 * host. */
#define OFFMAP_NOTIFY_CQ_EVENT UINT32_C(0x10)

/* Offset of the submission EventWord: when the device wants a KICK. Written by the
 * device. */
#define OFFMAP_NOTIFY_SQ_EVENT UINT32_C(0x40)

/* Bit of an event word: it is armed. The count that it holds is in the low 32 bits. */
#define OFFMAP_EVENT_ARMED UINT64_C(0x100000000)

/* ---- BAR layout and registers (abi §2, §3). */

/* PCI vendor id: QEMU's and rust-vmm's experimental range. It is not an assigned id. */
#define OFFMAP_PCI_VENDOR_ID UINT32_C(0x1af4)

/* PCI device id, within the experimental range of that vendor. */
#define OFFMAP_PCI_DEVICE_ID UINT32_C(0x10f0)

/* PCI class code: network controller, other. */
#define OFFMAP_PCI_CLASS UINT32_C(0x28000)

/* Index of the register BAR (64-bit, so BAR1 is its upper half). */
#define OFFMAP_BAR_REGISTERS UINT32_C(0)

/* Index of the device-memory window BAR (64-bit, so BAR3 is its upper half). */
#define OFFMAP_BAR_WINDOW UINT32_C(2)

/* Size of BAR0 in bytes. */
#define OFFMAP_BAR0_BYTES UINT64_C(0x40000)

/* Size of BAR2 in bytes. */
#define OFFMAP_WINDOW_BYTES UINT64_C(0x100000)

/* Offset in BAR0 of the doorbells: the one part that a transport may let the host map. Offset
 * and size are multiples of 64 KiB, the largest page size in use. */
#define OFFMAP_DOORBELLS UINT64_C(0x10000)

/* Size of the doorbells in bytes. */
#define OFFMAP_DOORBELLS_BYTES UINT64_C(0x10000)

/* Offset in BAR0 of the MSI-X table. */
#define OFFMAP_MSIX_TABLE UINT64_C(0x20000)

/* Offset in BAR0 of the MSI-X pending bit array. */
#define OFFMAP_MSIX_PBA UINT64_C(0x30000)

/* Highest number of queue pairs, the admin queue included, that there are doorbells for. */
#define OFFMAP_MAX_QUEUE_PAIRS UINT32_C(0x400)

/* Greatest depth that a queue can have on any device, in entries: the ABI's limit. */
#define OFFMAP_QUEUE_DEPTH_LIMIT UINT32_C(0x8000)

/* RO, 8 bytes: the bytes OFFMAP, 0, 0. */
#define OFFMAP_MAGIC UINT64_C(0)

/* Value of MAGIC. */
#define OFFMAP_MAGIC_VALUE UINT64_C(0x50414d46464f)

/* RO, 4 bytes: ABI version, minor in the low half, major in the high half. */
#define OFFMAP_VERSION UINT64_C(8)

/* RO, 4 bytes: number of MSI-X vectors. */
#define OFFMAP_VECTORS UINT64_C(0xc)

/* RO, 8 bytes: Features. */
#define OFFMAP_FEATURES UINT64_C(0x10)

/* RO, 4 bytes: number of I/O queue pairs (the admin queue not counted). */
#define OFFMAP_QUEUE_PAIRS UINT64_C(0x18)

/* RO, 4 bytes: greatest depth of a queue, in entries; depths are powers of two from 2 on. */
#define OFFMAP_QUEUE_DEPTH_MAX UINT64_C(0x1c)

/* RO, 4 bytes: the longest that the device takes from reset, enable or disable to the state
 * asked for, in milliseconds. */
#define OFFMAP_READY_TIMEOUT_MS UINT64_C(0x20)

/* RO, 4 bytes: counts how often the device has forgotten its queues and maps since it was
 * built (function-level reset, or ENABLE cleared while it was set), so that a host notices
 * one that it did not ask for. */
#define OFFMAP_RESET_COUNT UINT64_C(0x24)

/* RW, 4 bytes: Control. */
#define OFFMAP_CONTROL UINT64_C(0x40)

/* RO, 4 bytes: DeviceStatus. */
#define OFFMAP_STATUS UINT64_C(0x44)

/* WO, 4 bytes: wakes the device for the queue whose id is written (rule N1). */
#define OFFMAP_KICK UINT64_C(0x48)

/* RO, 4 bytes: why FATAL is set, a FatalCause. */
#define OFFMAP_FATAL_CAUSE UINT64_C(0x4c)

/* RW while disabled, 8 bytes: IOVA of the admin submission ring, 4,096-byte aligned. */
#define OFFMAP_ADMIN_SQ UINT64_C(0x50)

/* RW while disabled, 8 bytes: IOVA of the admin completion ring, 4,096-byte aligned. */
#define OFFMAP_ADMIN_CQ UINT64_C(0x58)

/* RW while disabled, 4 bytes: depth of the admin queue in entries, a power of two. */
#define OFFMAP_ADMIN_DEPTH UINT64_C(0x60)

/* RW while disabled, 4 bytes: MSI-X vector of the admin queue, or NO_VECTOR. */
#define OFFMAP_ADMIN_VECTOR UINT64_C(0x64)

/* RW, 8 bytes: device address that the first byte of BAR2 shows; 4,096-byte aligned. */
#define OFFMAP_WINDOW_BASE UINT64_C(0x70)

/* A vector number that stands for "no interrupt". */
#define OFFMAP_NO_VECTOR UINT32_C(0xffffffff)

/* Alignment of ring addresses, in bytes. */
#define OFFMAP_RING_ALIGN UINT64_C(0x1000)

/* Optional parts of the ABI that a device has. Unknown bits are kept and ignored. */
/* Queues may be created with a notify block (§4.2). */
#define OFFMAP_FEATURES_NOTIFY_BLOCK UINT64_C(1)
/* A write to a doorbell wakes the device even where the doorbells are mapped. A device
 * without it (an emulated one) looks at mapped doorbells at least once a
 * millisecond. */
#define OFFMAP_FEATURES_DOORBELL_WAKES UINT64_C(2)
/* The batch opcodes are there. */
#define OFFMAP_FEATURES_BATCH UINT64_C(4)
/* BAR2 shows device memory. */
#define OFFMAP_FEATURES_MEMORY_WINDOW UINT64_C(8)
/* QUEUE_CREATE takes interrupt coalescing (§6.2). */
#define OFFMAP_FEATURES_COALESCING UINT64_C(0x10)
/* MAP_LIST is there (§6.6). */
#define OFFMAP_FEATURES_MAP_LIST UINT64_C(0x20)
/* Maps outlive the host that made them, if it leaves without a reset (§6.6). */
#define OFFMAP_FEATURES_KEEPS_MAPS UINT64_C(0x40)
/* MEMORY_INFO, MAP_LAYOUT and MAP_MIGRATE are there, and MAP_CREATE takes a tier (§6.7 to
 * §6.9). */
#define OFFMAP_FEATURES_MEMORY_TIERS UINT64_C(0x80)

/* The CONTROL register. */
/* Set: the device takes up its admin queue and sets READY. Cleared: it stops all
 * queues, forgets them, frees all maps and clears READY and FATAL. */
#define OFFMAP_CONTROL_ENABLE UINT32_C(1)

/* The STATUS register. */
/* The admin queue is served. */
#define OFFMAP_DEVICE_STATUS_READY UINT32_C(1)
/* The device stopped itself; a reset helps, or ENABLE cleared. FATAL_CAUSE says why.
 * A fault on an I/O queue stops that queue alone and is not FATAL. */
#define OFFMAP_DEVICE_STATUS_FATAL UINT32_C(2)

/* Why a device stopped itself. */
/* It did not. */
#define OFFMAP_FATAL_CAUSE_NONE UINT32_C(0)
/* The admin queue's registers are not usable: alignment, depth or vector. */
#define OFFMAP_FATAL_CAUSE_ADMIN_QUEUE_CONFIG UINT32_C(1)
/* A ring of the admin queue could not be read or written. */
#define OFFMAP_FATAL_CAUSE_RING_DMA UINT32_C(2)
/* The admin queue's tail moved further than the ring is deep, its head past what was
 * posted, or a published entry had the wrong phase. */
#define OFFMAP_FATAL_CAUSE_RING_PROTOCOL UINT32_C(3)
/* The firmware found its own state inconsistent. */
#define OFFMAP_FATAL_CAUSE_FIRMWARE UINT32_C(4)

/* ---- Operation codes of the two kinds of queue (abi §6, §7). */

/* Commands of the admin queue (abi §6). */
/* Writes the IdentifyData page to host memory. */
#define OFFMAP_ADMIN_OPCODE_IDENTIFY UINT32_C(1)
/* Creates an I/O queue pair. */
#define OFFMAP_ADMIN_OPCODE_QUEUE_CREATE UINT32_C(2)
/* Deletes an I/O queue pair; its unfinished commands complete as aborted first. */
#define OFFMAP_ADMIN_OPCODE_QUEUE_DELETE UINT32_C(3)
/* Creates a map in device memory and returns its handle. */
#define OFFMAP_ADMIN_OPCODE_MAP_CREATE UINT32_C(0x10)
/* Frees a map's device memory; its handle becomes invalid. */
#define OFFMAP_ADMIN_OPCODE_MAP_FREE UINT32_C(0x11)
/* Reports what a map holds and uses. */
#define OFFMAP_ADMIN_OPCODE_MAP_QUERY UINT32_C(0x12)
/* Lists the maps that there are. */
#define OFFMAP_ADMIN_OPCODE_MAP_LIST UINT32_C(0x13)
/* Describes the tiers of device memory. */
#define OFFMAP_ADMIN_OPCODE_MEMORY_INFO UINT32_C(0x14)
/* Says how a map lies in device memory. */
#define OFFMAP_ADMIN_OPCODE_MAP_LAYOUT UINT32_C(0x15)
/* Moves a map to another tier of device memory. */
#define OFFMAP_ADMIN_OPCODE_MAP_MIGRATE UINT32_C(0x16)
/* Asks that a command of an I/O queue ends now. */
#define OFFMAP_ADMIN_OPCODE_ABORT UINT32_C(0x20)

/* Commands of an I/O queue (abi §7). */
/* Does nothing and completes: a probe of the queue. */
#define OFFMAP_IO_OPCODE_NOP UINT32_C(0)
/* Returns the value of a key. */
#define OFFMAP_IO_OPCODE_LOOKUP UINT32_C(1)
/* Stores a value under a key. */
#define OFFMAP_IO_OPCODE_UPDATE UINT32_C(2)
/* Removes a key. */
#define OFFMAP_IO_OPCODE_DELETE UINT32_C(3)
/* Returns the first key in iteration order. */
#define OFFMAP_IO_OPCODE_GET_FIRST UINT32_C(4)
/* Returns the key after the given one; the first key when the given one is not there. */
#define OFFMAP_IO_OPCODE_GET_NEXT UINT32_C(5)
/* Returns the value of a key and removes the key, in one step. */
#define OFFMAP_IO_OPCODE_LOOKUP_AND_DELETE UINT32_C(6)
/* Looks up an array of keys. */
#define OFFMAP_IO_OPCODE_BATCH_LOOKUP UINT32_C(0x11)
/* Stores arrays of keys and values. */
#define OFFMAP_IO_OPCODE_BATCH_UPDATE UINT32_C(0x12)
/* Removes an array of keys. */
#define OFFMAP_IO_OPCODE_BATCH_DELETE UINT32_C(0x13)
/* Returns keys and values in iteration order, from a cursor. */
#define OFFMAP_IO_OPCODE_BATCH_DUMP UINT32_C(0x14)
/* As BatchDump, and removes what it returns. */
#define OFFMAP_IO_OPCODE_BATCH_DUMP_DELETE UINT32_C(0x15)

/* ---- Completion status codes (abi §8). */

/* The result of a command. A host maps a code that it does not know to EIO. */
/* Done. */
#define OFFMAP_STATUS_SUCCESS UINT32_C(0)
/* The key is not there, or the queue or stack is empty; for get-first, get-next and
 * dump: there is no further key. */
#define OFFMAP_STATUS_NOT_FOUND UINT32_C(1)
/* The key is there and the flags asked that it is not. */
#define OFFMAP_STATUS_EXISTS UINT32_C(2)
/* The map holds max_entries entries and the key is new. */
#define OFFMAP_STATUS_FULL UINT32_C(3)
/* An array index is at or past max_entries. */
#define OFFMAP_STATUS_OUT_OF_RANGE UINT32_C(4)
/* Device memory is used up. */
#define OFFMAP_STATUS_NO_MEMORY UINT32_C(5)
/* A field of the command has a value that the section of that command forbids. */
#define OFFMAP_STATUS_INVALID_FIELD UINT32_C(6)
/* The opcode is not one of this device's. */
#define OFFMAP_STATUS_INVALID_OPCODE UINT32_C(7)
/* The map handle names no live map. */
#define OFFMAP_STATUS_INVALID_MAP UINT32_C(8)
/* A queue id names no queue, or one that exists already. */
#define OFFMAP_STATUS_INVALID_QUEUE UINT32_C(9)
/* A key or value length does not fit the map. */
#define OFFMAP_STATUS_INVALID_LENGTH UINT32_C(0xa)
/* A limit of the device was exceeded; the payload is a LimitDetail. */
#define OFFMAP_STATUS_LIMIT_EXCEEDED UINT32_C(0xb)
/* The map's type does not have this operation. */
#define OFFMAP_STATUS_UNSUPPORTED UINT32_C(0xc)
/* Host memory at an address in the command could not be read or written. */
#define OFFMAP_STATUS_DMA_FAULT UINT32_C(0xd)
/* The command was aborted, or its queue deleted, before it had begun. */
#define OFFMAP_STATUS_ABORTED UINT32_C(0xe)
/* The first bucket of a dump that holds anything does not fit the arrays. The result's
 * cursor is that bucket, and its needed says how many elements there are in it. */
#define OFFMAP_STATUS_NO_SPACE UINT32_C(0xf)
/* Device memory returned data that its check code shows to be wrong. */
#define OFFMAP_STATUS_MEDIA_ERROR UINT32_C(0x10)
/* The device found the map's state inconsistent. */
#define OFFMAP_STATUS_INTERNAL UINT32_C(0x11)
/* The queue has stopped after a protocol error or a DMA fault on its rings; only its
 * deletion helps. */
#define OFFMAP_STATUS_QUEUE_STOPPED UINT32_C(0x12)
/* The command was ended after it had begun; whether it had its effect is unknown. */
#define OFFMAP_STATUS_INTERRUPTED UINT32_C(0x13)

/* ---- Map types as they stand in MAP_CREATE and IDENTIFY (abi §6.1, §6.3). */

/* A map type: a value of the UAPI's enum bpf_map_type. Those are named here that a
 * device of this version may have; a device says in IDENTIFY which it has. */
/* BPF_MAP_TYPE_HASH. */
#define OFFMAP_MAP_TYPE_HASH UINT32_C(1)
/* BPF_MAP_TYPE_ARRAY. */
#define OFFMAP_MAP_TYPE_ARRAY UINT32_C(2)
/* BPF_MAP_TYPE_PERCPU_HASH. */
#define OFFMAP_MAP_TYPE_PERCPU_HASH UINT32_C(5)
/* BPF_MAP_TYPE_PERCPU_ARRAY. */
#define OFFMAP_MAP_TYPE_PERCPU_ARRAY UINT32_C(6)
/* BPF_MAP_TYPE_LRU_HASH. */
#define OFFMAP_MAP_TYPE_LRU_HASH UINT32_C(9)
/* BPF_MAP_TYPE_LRU_PERCPU_HASH. */
#define OFFMAP_MAP_TYPE_LRU_PERCPU_HASH UINT32_C(0xa)
/* BPF_MAP_TYPE_LPM_TRIE. */
#define OFFMAP_MAP_TYPE_LPM_TRIE UINT32_C(0xb)
/* BPF_MAP_TYPE_ARRAY_OF_MAPS. */
#define OFFMAP_MAP_TYPE_ARRAY_OF_MAPS UINT32_C(0xc)
/* BPF_MAP_TYPE_HASH_OF_MAPS. */
#define OFFMAP_MAP_TYPE_HASH_OF_MAPS UINT32_C(0xd)
/* BPF_MAP_TYPE_QUEUE. */
#define OFFMAP_MAP_TYPE_QUEUE UINT32_C(0x16)
/* BPF_MAP_TYPE_STACK. */
#define OFFMAP_MAP_TYPE_STACK UINT32_C(0x17)
/* BPF_MAP_TYPE_RINGBUF. */
#define OFFMAP_MAP_TYPE_RINGBUF UINT32_C(0x1b)
/* BPF_MAP_TYPE_BLOOM_FILTER. */
#define OFFMAP_MAP_TYPE_BLOOM_FILTER UINT32_C(0x1e)

/* ---- Submission queue entries: 64 bytes (abi §5.1, §7). */

/* Size of a submission, in bytes. */
#define OFFMAP_SUBMISSION_BYTES UINT32_C(0x40)

/* Size of a submission, in 8-byte words: the unit in which rings are loaded and stored. */
#define OFFMAP_SUBMISSION_WORDS UINT32_C(8)

/* Longest key that travels inside a submission, in bytes. */
#define OFFMAP_INLINE_KEY_BYTES UINT32_C(0x10)

/* Longest value that travels inside a submission, in bytes. */
#define OFFMAP_INLINE_VALUE_BYTES UINT32_C(0x10)

/* The phase bit within word 0 of a submission, and within word 0 of a completion. */
#define OFFMAP_PHASE_BIT UINT64_C(0x10000)

/* map_flags of an update: create the element or replace it (the UAPI's BPF_ANY). */
#define OFFMAP_UPDATE_ANY UINT32_C(0)

/* map_flags of an update: only if the key is not there (BPF_NOEXIST). */
#define OFFMAP_UPDATE_NOEXIST UINT32_C(1)

/* map_flags of an update: only if the key is there (BPF_EXIST). */
#define OFFMAP_UPDATE_EXIST UINT32_C(2)

/* How a submission carries its operands (abi §5.1). Unknown bits are kept. */
/* The key stands in the descriptor's key field; otherwise that field holds its IOVA. */
#define OFFMAP_SUBMISSION_FLAGS_KEY_INLINE UINT32_C(1)
/* The value stands in the descriptor's value field (update), or is to be returned in
 * the completion's payload (the operations that return a value or a key); otherwise
 * the field holds the IOVA of a buffer. */
#define OFFMAP_SUBMISSION_FLAGS_VALUE_INLINE UINT32_C(2)

/* A submission queue entry.
 *
 * Word 0 (opcode, flags, phase, map) is the ownership word: it is stored last, with
 * release ordering, and the entry belongs to the device from that store on (abi §10, rule S1). */
struct offmap_submission {
	/* AdminOpcode or IoOpcode, by the kind of queue. */
	uint8_t opcode;
	/* SubmissionFlags. */
	uint8_t flags;
	/* Bit 0: phase. It is 1 in the first pass over the ring and flips with each pass. */
	offmap_le16 phase;
	/* The map that the command is for; 0 where it is for none. */
	offmap_le32 map;
	/* Returned unchanged in the completion. */
	offmap_le64 request;
	/* Operands, by opcode: ElementBody, BatchBody or a body of admin. */
	uint8_t body[48];
};
OFFMAP_ASSERT(sizeof(struct offmap_submission) == 64);
OFFMAP_ASSERT(offsetof(struct offmap_submission, opcode) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_submission, flags) == 1);
OFFMAP_ASSERT(offsetof(struct offmap_submission, phase) == 2);
OFFMAP_ASSERT(offsetof(struct offmap_submission, map) == 4);
OFFMAP_ASSERT(offsetof(struct offmap_submission, request) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_submission, body) == 16);

/* Operands of the commands on one element (abi §7.1). */
struct offmap_element_body {
	/* UPDATE_ANY, UPDATE_NOEXIST or UPDATE_EXIST for an update; 0 otherwise. */
	offmap_le32 map_flags;
	/* Length of the key in bytes; must equal the map's key size where the command has a key. */
	offmap_le32 key_len;
	/* Length in bytes of the value given (update), or of the room for what is returned. */
	offmap_le32 value_len;
	/* Zero. */
	offmap_le32 reserved;
	/* The key, zero-padded, or an IovaRef. */
	uint8_t key[16];
	/* The value, zero-padded, or an IovaRef. */
	uint8_t value[16];
};
OFFMAP_ASSERT(sizeof(struct offmap_element_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_element_body, map_flags) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_element_body, key_len) == 4);
OFFMAP_ASSERT(offsetof(struct offmap_element_body, value_len) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_element_body, reserved) == 12);
OFFMAP_ASSERT(offsetof(struct offmap_element_body, key) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_element_body, value) == 32);

/* A reference to host memory inside an operand field. */
struct offmap_iova_ref {
	/* IOVA of the buffer's first byte. */
	offmap_le64 iova;
	/* Zero. */
	offmap_le64 reserved;
};
OFFMAP_ASSERT(sizeof(struct offmap_iova_ref) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_iova_ref, iova) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_iova_ref, reserved) == 8);

/* Operands of the commands on many elements (abi §7.2).
 *
 * The arrays are packed: element i of the keys starts at i * key_size, of the values at
 * i * value_stride, where the stride is value_size, and for per-CPU maps
 * round_up(value_size, 8) * cpu_slots. A field that an opcode does not use is zero. */
struct offmap_batch_body {
	/* As in ElementBody, for every element. */
	offmap_le32 map_flags;
	/* Number of elements in the arrays. */
	offmap_le32 count;
	/* Length of one key in bytes; must equal the map's key size. */
	offmap_le32 key_len;
	/* Stride of the values in bytes; must equal the map's value stride. */
	offmap_le32 value_len;
	/* IOVA of the keys. */
	offmap_le64 keys;
	/* IOVA of the values. */
	offmap_le64 values;
	/* IOVA of the statuses: one little-endian 16-bit Status per element. */
	offmap_le64 statuses;
	/* Where a dump starts: 0, or the cursor that the previous dump's completion returned. */
	offmap_le64 cursor;
};
OFFMAP_ASSERT(sizeof(struct offmap_batch_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_batch_body, map_flags) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_batch_body, count) == 4);
OFFMAP_ASSERT(offsetof(struct offmap_batch_body, key_len) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_batch_body, value_len) == 12);
OFFMAP_ASSERT(offsetof(struct offmap_batch_body, keys) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_batch_body, values) == 24);
OFFMAP_ASSERT(offsetof(struct offmap_batch_body, statuses) == 32);
OFFMAP_ASSERT(offsetof(struct offmap_batch_body, cursor) == 40);

/* ---- Completion queue entries: 64 bytes (abi §5.3). */

/* Size of a completion, in bytes. */
#define OFFMAP_COMPLETION_BYTES UINT32_C(0x40)

/* Size of a completion, in 8-byte words. */
#define OFFMAP_COMPLETION_WORDS UINT32_C(8)

/* Room for a returned value or key inside a completion, in bytes. */
#define OFFMAP_INLINE_RESULT_BYTES UINT32_C(0x30)

/* A completion queue entry.
 *
 * Word 0 (status, phase, count) is the ownership word, stored last with release
 * ordering (abi §10, rule C1). */
struct offmap_completion {
	/* Status. */
	offmap_le16 status;
	/* Bit 0: phase, as in a submission. */
	offmap_le16 phase;
	/* For element and admin commands the bytes that were returned, in the payload or at the
	 * IOVA that the command named; for batch commands, whose payload is always a
	 * BatchResult, the number of elements done. */
	offmap_le32 count;
	/* The id of the submission that this completes. */
	offmap_le64 request;
	/* What the command returned. */
	uint8_t payload[48];
};
OFFMAP_ASSERT(sizeof(struct offmap_completion) == 64);
OFFMAP_ASSERT(offsetof(struct offmap_completion, status) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_completion, phase) == 2);
OFFMAP_ASSERT(offsetof(struct offmap_completion, count) == 4);
OFFMAP_ASSERT(offsetof(struct offmap_completion, request) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_completion, payload) == 16);

/* Payload of a batch command's completion (abi §7.2). */
struct offmap_batch_result {
	/* Where the next dump continues. Opaque to the host, except that it fits 32 bits and
	 * grows from command to command of a dump. */
	offmap_le64 cursor;
	/* For NoSpace: how many elements the next bucket holds. */
	offmap_le32 needed;
	/* Zero. */
	offmap_le32 reserved;
};
OFFMAP_ASSERT(sizeof(struct offmap_batch_result) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_batch_result, cursor) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_batch_result, needed) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_batch_result, reserved) == 12);

/* ---- Bodies and results of the admin commands (abi §6). */

/* Operands of IDENTIFY (abi §6.1). */
struct offmap_identify_body {
	/* IOVA of the buffer. */
	offmap_le64 iova;
	/* Room in the buffer in bytes. The device writes at most this much of IdentifyData. */
	offmap_le32 len;
	/* Zero. */
	uint8_t reserved[36];
};
OFFMAP_ASSERT(sizeof(struct offmap_identify_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_identify_body, iova) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_identify_body, len) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_identify_body, reserved) == 12);

/* Most network ports of a device (ports). */
#define OFFMAP_PORTS_MAX UINT32_C(0x100)

/* Most tiers of a device's memory (tiers). */
#define OFFMAP_TIERS_MAX UINT32_C(0x10)

/* What IDENTIFY writes: what the device's firmware is and can hold. */
struct offmap_identify_data {
	/* Name of the firmware, UTF-8, zero-padded. */
	uint8_t firmware[32];
	/* Map types: bit n stands for UAPI enum bpf_map_type value n. */
	offmap_le64 map_types;
	/* Device memory for maps, in bytes. */
	offmap_le64 memory_bytes;
	/* Most entries that all maps together may declare; 0: bounded by memory alone. */
	offmap_le64 entries_total;
	/* Most entries of one map. */
	offmap_le32 entries_per_map;
	/* Most maps at a time. */
	offmap_le32 maps;
	/* Longest key in bytes. */
	offmap_le32 key_bytes;
	/* Longest value in bytes (of one CPU, for per-CPU maps). */
	offmap_le32 value_bytes;
	/* Most per-CPU slots of a map. */
	offmap_le32 cpu_slots;
	/* Most elements of a batch command; 0 without the BATCH feature. */
	offmap_le32 batch;
	/* Number of engines that run the data path. Engine e writes per-CPU slot
	 * e % cpu_slots. */
	offmap_le32 engines;
	/* Network ports, at most PORTS_MAX, which share the maps; 0 stands for one. */
	offmap_le32 ports;
	/* Tiers of device memory, at most TIERS_MAX; 0 stands for one. */
	offmap_le32 tiers;
	/* Zero. */
	uint8_t reserved[36];
};
OFFMAP_ASSERT(sizeof(struct offmap_identify_data) == 128);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, firmware) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, map_types) == 32);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, memory_bytes) == 40);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, entries_total) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, entries_per_map) == 56);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, maps) == 60);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, key_bytes) == 64);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, value_bytes) == 68);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, cpu_slots) == 72);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, batch) == 76);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, engines) == 80);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, ports) == 84);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, tiers) == 88);
OFFMAP_ASSERT(offsetof(struct offmap_identify_data, reserved) == 92);

/* Operands of QUEUE_CREATE (abi §6.2). */
struct offmap_queue_create_body {
	/* Id of the new queue pair, from 1. */
	offmap_le16 queue;
	/* Zero. */
	offmap_le16 reserved;
	/* Depth of both rings in entries: a power of two. */
	offmap_le32 depth;
	/* MSI-X vector, or NO_VECTOR. */
	offmap_le32 vector;
	/* Interrupt coalescing: completions for which an interrupt is held back, from 2; 0: none
	 * is. Zero without COALESCING. */
	offmap_le16 coalesce_count;
	/* The longest that it is held back, in microseconds: from 1, and 0 where the count is. */
	offmap_le16 coalesce_us;
	/* IOVA of the submission ring, aligned to RING_ALIGN, zeroed. */
	offmap_le64 sq;
	/* IOVA of the completion ring, likewise. */
	offmap_le64 cq;
	/* IOVA of the notify block, 64-byte aligned and zeroed; 0: the queue uses doorbells. */
	offmap_le64 notify;
	/* Zero. */
	offmap_le64 reserved3;
};
OFFMAP_ASSERT(sizeof(struct offmap_queue_create_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_queue_create_body, queue) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_queue_create_body, reserved) == 2);
OFFMAP_ASSERT(offsetof(struct offmap_queue_create_body, depth) == 4);
OFFMAP_ASSERT(offsetof(struct offmap_queue_create_body, vector) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_queue_create_body, coalesce_count) == 12);
OFFMAP_ASSERT(offsetof(struct offmap_queue_create_body, coalesce_us) == 14);
OFFMAP_ASSERT(offsetof(struct offmap_queue_create_body, sq) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_queue_create_body, cq) == 24);
OFFMAP_ASSERT(offsetof(struct offmap_queue_create_body, notify) == 32);
OFFMAP_ASSERT(offsetof(struct offmap_queue_create_body, reserved3) == 40);

/* Operands of QUEUE_DELETE (abi §6.2). */
struct offmap_queue_delete_body {
	/* Id of the queue pair. */
	offmap_le16 queue;
	/* Zero. */
	uint8_t reserved[46];
};
OFFMAP_ASSERT(sizeof(struct offmap_queue_delete_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_queue_delete_body, queue) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_queue_delete_body, reserved) == 2);

/* Operands of MAP_CREATE (abi §6.3). The completion's payload is a MapCreated.
 *
 * What every map has is here; what some maps have, or will have, is in a MapAttr that the
 * body refers to, which can grow. */
struct offmap_map_create_body {
	/* UAPI enum bpf_map_type value. */
	offmap_le32 map_type;
	/* Key size in bytes. */
	offmap_le32 key_size;
	/* Value size in bytes (of one CPU, for per-CPU types). */
	offmap_le32 value_size;
	/* Number of entries that the map must be able to hold. */
	offmap_le32 max_entries;
	/* Per-CPU slots: the host's possible CPUs for per-CPU types, otherwise 0. */
	offmap_le32 cpu_slots;
	/* Zero; later flags. */
	offmap_le32 flags;
	/* Seed of the key hash. */
	offmap_le64 seed;
	/* IOVA of a MapAttr. */
	offmap_le64 attr;
	/* Its length in bytes; 0: there is none, and all of it counts as zero. */
	offmap_le32 attr_len;
	/* Zero. */
	offmap_le32 reserved;
};
OFFMAP_ASSERT(sizeof(struct offmap_map_create_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_map_create_body, map_type) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_map_create_body, key_size) == 4);
OFFMAP_ASSERT(offsetof(struct offmap_map_create_body, value_size) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_map_create_body, max_entries) == 12);
OFFMAP_ASSERT(offsetof(struct offmap_map_create_body, cpu_slots) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_map_create_body, flags) == 20);
OFFMAP_ASSERT(offsetof(struct offmap_map_create_body, seed) == 24);
OFFMAP_ASSERT(offsetof(struct offmap_map_create_body, attr) == 32);
OFFMAP_ASSERT(offsetof(struct offmap_map_create_body, attr_len) == 40);
OFFMAP_ASSERT(offsetof(struct offmap_map_create_body, reserved) == 44);

/* The longest MapAttr that a device has to accept, in bytes. */
#define OFFMAP_MAP_ATTR_BYTES_MAX UINT32_C(0x1000)

/* Further attributes of a new map (abi §6.3).
 *
 * The structure grows at its end. A shorter one counts as zero-extended; what a device does
 * not know at the end of a longer one must be zero, or the command is refused. */
struct offmap_map_attr {
	/* Name for people, NUL-padded. */
	uint8_t name[16];
	/* The UAPI's map_extra; 0 for types that have no use for it. */
	offmap_le64 map_extra;
	/* IOVA of host memory that belongs to the map, for types that have some; otherwise 0. */
	offmap_le64 host_memory;
	/* Handle of the template of the inner maps, for types that hold maps; otherwise 0. */
	offmap_le32 inner_map;
	/* MSI-X vector by which the map tells of data, or NO_VECTOR; 0 for types
	 * that do not. */
	offmap_le32 vector;
	/* The memory tier that it is placed in: the tier's number plus one; 0: the device chooses.
	 * Other values need MEMORY_TIERS. */
	offmap_le32 tier;
	/* Zero. */
	offmap_le32 reserved;
};
OFFMAP_ASSERT(sizeof(struct offmap_map_attr) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_map_attr, name) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_map_attr, map_extra) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_map_attr, host_memory) == 24);
OFFMAP_ASSERT(offsetof(struct offmap_map_attr, inner_map) == 32);
OFFMAP_ASSERT(offsetof(struct offmap_map_attr, vector) == 36);
OFFMAP_ASSERT(offsetof(struct offmap_map_attr, tier) == 40);
OFFMAP_ASSERT(offsetof(struct offmap_map_attr, reserved) == 44);

/* Result of MAP_CREATE. */
struct offmap_map_created {
	/* Handle of the new map. */
	offmap_le32 map;
	/* Zero. */
	offmap_le32 reserved;
	/* Device memory that the map occupies, in bytes. */
	offmap_le64 bytes;
};
OFFMAP_ASSERT(sizeof(struct offmap_map_created) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_map_created, map) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_map_created, reserved) == 4);
OFFMAP_ASSERT(offsetof(struct offmap_map_created, bytes) == 8);

/* Operands of MAP_FREE and MAP_QUERY: none; the map stands in the submission's header. */
struct offmap_empty_body {
	/* Zero. */
	uint8_t reserved[48];
};
OFFMAP_ASSERT(sizeof(struct offmap_empty_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_empty_body, reserved) == 0);

/* Result of MAP_QUERY (abi §6.4). */
struct offmap_map_info {
	/* Device memory that the map occupies, in bytes. */
	offmap_le64 bytes;
	/* Entries in the map now. */
	offmap_le32 entries;
	/* Longest chain of buckets of a hash map now, in buckets; 0 for arrays. */
	offmap_le32 longest_chain;
	/* Device memory that no map occupies, in bytes. */
	offmap_le64 free_bytes;
	/* Largest piece of it, in bytes. */
	offmap_le64 free_largest;
};
OFFMAP_ASSERT(sizeof(struct offmap_map_info) == 32);
OFFMAP_ASSERT(offsetof(struct offmap_map_info, bytes) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_map_info, entries) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_map_info, longest_chain) == 12);
OFFMAP_ASSERT(offsetof(struct offmap_map_info, free_bytes) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_map_info, free_largest) == 24);

/* Operands of MAP_LIST (abi §6.6). The completion's payload is a MapListed. */
struct offmap_map_list_body {
	/* IOVA of the room for MapDescriptions. */
	offmap_le64 iova;
	/* The room in bytes: one description or more. */
	offmap_le32 len;
	/* 0 at first, and then the cursor of the completion before. */
	offmap_le32 cursor;
	/* Zero. */
	uint8_t reserved[32];
};
OFFMAP_ASSERT(sizeof(struct offmap_map_list_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_map_list_body, iova) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_map_list_body, len) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_map_list_body, cursor) == 12);
OFFMAP_ASSERT(offsetof(struct offmap_map_list_body, reserved) == 16);

/* Result of MAP_LIST. */
struct offmap_map_listed {
	/* Where the list goes on; 0: it has ended. */
	offmap_le32 cursor;
	/* Zero. */
	offmap_le32 reserved;
};
OFFMAP_ASSERT(sizeof(struct offmap_map_listed) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_map_listed, cursor) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_map_listed, reserved) == 4);

/* A map, as MAP_LIST describes it: what MAP_CREATE was given. */
struct offmap_map_description {
	/* Its handle. */
	offmap_le32 map;
	/* UAPI enum bpf_map_type value. */
	offmap_le32 map_type;
	/* Key size in bytes. */
	offmap_le32 key_size;
	/* Value size in bytes (of one CPU, for per-CPU types). */
	offmap_le32 value_size;
	/* Number of entries that it can hold. */
	offmap_le32 max_entries;
	/* Per-CPU slots, or 0. */
	offmap_le32 cpu_slots;
	/* The UAPI's map_extra. */
	offmap_le64 map_extra;
	/* Device memory that it occupies, in bytes. */
	offmap_le64 bytes;
	/* Name for people, NUL-padded. */
	uint8_t name[16];
	/* Device address at which it begins; 0 without MEMORY_TIERS. */
	offmap_le64 base;
};
OFFMAP_ASSERT(sizeof(struct offmap_map_description) == 64);
OFFMAP_ASSERT(offsetof(struct offmap_map_description, map) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_map_description, map_type) == 4);
OFFMAP_ASSERT(offsetof(struct offmap_map_description, key_size) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_map_description, value_size) == 12);
OFFMAP_ASSERT(offsetof(struct offmap_map_description, max_entries) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_map_description, cpu_slots) == 20);
OFFMAP_ASSERT(offsetof(struct offmap_map_description, map_extra) == 24);
OFFMAP_ASSERT(offsetof(struct offmap_map_description, bytes) == 32);
OFFMAP_ASSERT(offsetof(struct offmap_map_description, name) == 40);
OFFMAP_ASSERT(offsetof(struct offmap_map_description, base) == 56);

/* Operands of MEMORY_INFO (abi §6.7). The completion's payload is a MemoryListed. */
struct offmap_memory_info_body {
	/* IOVA of the room for TierInfos. */
	offmap_le64 iova;
	/* The room in bytes. */
	offmap_le32 len;
	/* The tier to begin with. */
	offmap_le32 first;
	/* Zero. */
	uint8_t reserved[32];
};
OFFMAP_ASSERT(sizeof(struct offmap_memory_info_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_memory_info_body, iova) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_memory_info_body, len) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_memory_info_body, first) == 12);
OFFMAP_ASSERT(offsetof(struct offmap_memory_info_body, reserved) == 16);

/* Result of MEMORY_INFO. */
struct offmap_memory_listed {
	/* Tiers that there are. */
	offmap_le32 tiers;
	/* Bytes of a line, by which memory is handed out and checked. */
	offmap_le32 line_bytes;
};
OFFMAP_ASSERT(sizeof(struct offmap_memory_listed) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_memory_listed, tiers) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_memory_listed, line_bytes) == 4);

/* A tier of device memory, as MEMORY_INFO describes it. Tiers stand in the order of their speed, the
 * fastest first, and their addresses follow each other. */
struct offmap_tier_info {
	/* Name, UTF-8, NUL-padded. */
	uint8_t name[16];
	/* Device address of its first byte. */
	offmap_le64 base;
	/* Bytes that can be handed out. */
	offmap_le64 bytes;
	/* Bytes that maps occupy. */
	offmap_le64 used;
	/* Bytes of the largest free piece. */
	offmap_le64 free_largest;
	/* Free pieces. */
	offmap_le32 free_pieces;
	/* Its check code, a CheckCode. */
	offmap_le32 check;
	/* TIER_PLACEABLE; the rest zero. */
	offmap_le32 flags;
	/* Zero. */
	offmap_le32 reserved;
	/* Errors of one bit that the check code has corrected since the device was built. */
	offmap_le64 corrected;
	/* Errors that it has detected and could not correct, likewise. */
	offmap_le64 detected;
	/* Lines of which bits are wrong, as far as the check code has shown. */
	offmap_le64 bad_lines;
	/* Zero. */
	offmap_le64 reserved2;
};
OFFMAP_ASSERT(sizeof(struct offmap_tier_info) == 96);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, name) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, base) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, bytes) == 24);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, used) == 32);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, free_largest) == 40);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, free_pieces) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, check) == 52);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, flags) == 56);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, reserved) == 60);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, corrected) == 64);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, detected) == 72);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, bad_lines) == 80);
OFFMAP_ASSERT(offsetof(struct offmap_tier_info, reserved2) == 88);

/* In flags: maps can be placed in it. */
#define OFFMAP_TIER_PLACEABLE UINT32_C(1)

/* What finds wrong bits in a tier. */
/* Nothing: what is wrong is read as it is. */
#define OFFMAP_CHECK_CODE_NONE UINT32_C(0)
/* A parity bit for each line: an odd number of wrong bits is detected. */
#define OFFMAP_CHECK_CODE_PARITY UINT32_C(1)
/* Eight check bits for each word of eight bytes: one wrong bit is corrected, two are
 * detected. */
#define OFFMAP_CHECK_CODE_SECDED UINT32_C(2)

/* Operands of MAP_LAYOUT (abi §6.8); the map stands in the submission's header. The device writes a
 * MapLayout. */
struct offmap_map_layout_body {
	/* IOVA of the room for a MapLayout. */
	offmap_le64 iova;
	/* The room in bytes. The device writes at most this much. */
	offmap_le32 len;
	/* Zero. */
	uint8_t reserved[36];
};
OFFMAP_ASSERT(sizeof(struct offmap_map_layout_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout_body, iova) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout_body, len) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout_body, reserved) == 12);

/* How a map lies in device memory. */
struct offmap_map_layout {
	/* Device address at which it begins. */
	offmap_le64 base;
	/* Bytes from there. */
	offmap_le64 bytes;
	/* The tier that it lies in, from 0. */
	offmap_le32 tier;
	/* MAP_TIER_FIXED; the rest zero. */
	offmap_le32 flags;
	/* Commands on its elements and accesses by engines in the period at hand, and half of what it was
	 * at the end of the one before (abi §6.9). */
	offmap_le64 heat;
	/* Entries in it. */
	offmap_le32 entries;
	/* Entries that it can hold. */
	offmap_le32 max_entries;
	/* Bytes of an entry, key and value and padding. */
	offmap_le64 entry_bytes;
	/* Home buckets of a hash table; 0 for other types, as with what follows. */
	offmap_le32 homes;
	/* Home buckets that hold anything. */
	offmap_le32 homes_used;
	/* Overflow buckets. */
	offmap_le32 overflow;
	/* Overflow buckets that are part of a chain. */
	offmap_le32 overflow_used;
	/* Longest chain, in buckets. */
	offmap_le32 longest_chain;
	/* Entries found with one bucket read. */
	offmap_le32 probes_1;
	/* Entries found with two. */
	offmap_le32 probes_2;
	/* Entries found with three. */
	offmap_le32 probes_3;
	/* Entries found with four. */
	offmap_le32 probes_4;
	/* Entries found with five to eight. */
	offmap_le32 probes_8;
	/* Entries found with nine to sixteen. */
	offmap_le32 probes_16;
	/* Entries found with more. */
	offmap_le32 probes_more;
	/* Zero. */
	uint8_t reserved[32];
};
OFFMAP_ASSERT(sizeof(struct offmap_map_layout) == 128);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, base) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, bytes) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, tier) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, flags) == 20);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, heat) == 24);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, entries) == 32);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, max_entries) == 36);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, entry_bytes) == 40);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, homes) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, homes_used) == 52);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, overflow) == 56);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, overflow_used) == 60);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, longest_chain) == 64);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, probes_1) == 68);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, probes_2) == 72);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, probes_3) == 76);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, probes_4) == 80);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, probes_8) == 84);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, probes_16) == 88);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, probes_more) == 92);
OFFMAP_ASSERT(offsetof(struct offmap_map_layout, reserved) == 96);

/* In flags: its tier was asked for, and the device does not choose another one. */
#define OFFMAP_MAP_TIER_FIXED UINT32_C(1)

/* Operands of MAP_MIGRATE (abi §6.9); the map stands in the submission's header, or 0. The
 * completion's payload is a MapMigrated. */
struct offmap_map_migrate_body {
	/* The tier to move to: its number plus one; 0: the device chooses. */
	offmap_le32 tier;
	/* Zero. */
	uint8_t reserved[44];
};
OFFMAP_ASSERT(sizeof(struct offmap_map_migrate_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_map_migrate_body, tier) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_map_migrate_body, reserved) == 4);

/* Result of MAP_MIGRATE. */
struct offmap_map_migrated {
	/* The map that has moved; 0: none has. */
	offmap_le32 map;
	/* The tier that it lies in, from 0. */
	offmap_le32 tier;
	/* Device address at which it begins. */
	offmap_le64 base;
	/* The tier that it was in, from 0. */
	offmap_le32 from;
	/* Zero. */
	offmap_le32 reserved;
};
OFFMAP_ASSERT(sizeof(struct offmap_map_migrated) == 24);
OFFMAP_ASSERT(offsetof(struct offmap_map_migrated, map) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_map_migrated, tier) == 4);
OFFMAP_ASSERT(offsetof(struct offmap_map_migrated, base) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_map_migrated, from) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_map_migrated, reserved) == 20);

/* Operands of ABORT (abi §6.5). */
struct offmap_abort_body {
	/* The command to end. */
	offmap_le64 request;
	/* Its queue. */
	offmap_le16 queue;
	/* Zero. */
	uint8_t reserved[38];
};
OFFMAP_ASSERT(sizeof(struct offmap_abort_body) == 48);
OFFMAP_ASSERT(offsetof(struct offmap_abort_body, request) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_abort_body, queue) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_abort_body, reserved) == 10);

/* Which limit a LimitDetail is about. */
/* Map type; allowed is the bit set of types. */
#define OFFMAP_LIMIT_MAP_TYPE UINT32_C(1)
/* Key size, in bytes. */
#define OFFMAP_LIMIT_KEY_BYTES UINT32_C(2)
/* Value size, in bytes. */
#define OFFMAP_LIMIT_VALUE_BYTES UINT32_C(3)
/* Entries of one map. */
#define OFFMAP_LIMIT_ENTRIES_PER_MAP UINT32_C(4)
/* Entries of all maps together; used by those that exist. */
#define OFFMAP_LIMIT_ENTRIES_TOTAL UINT32_C(5)
/* Number of maps; used exist. */
#define OFFMAP_LIMIT_MAPS UINT32_C(6)
/* Per-CPU slots. */
#define OFFMAP_LIMIT_CPU_SLOTS UINT32_C(7)
/* Device memory in bytes; used by the maps that exist, allowed the largest free
 * piece. The payload is a MemoryDetail then, which begins as a LimitDetail. */
#define OFFMAP_LIMIT_MEMORY UINT32_C(8)

/* Payload of a completion with LimitExceeded or
 * NoMemory. */
struct offmap_limit_detail {
	/* Which Limit. */
	offmap_le32 limit;
	/* Zero. */
	offmap_le32 reserved;
	/* What the command asked for. */
	offmap_le64 asked;
	/* What the device allows. */
	offmap_le64 allowed;
	/* What is in use already, where the limit is shared. */
	offmap_le64 used;
};
OFFMAP_ASSERT(sizeof(struct offmap_limit_detail) == 32);
OFFMAP_ASSERT(offsetof(struct offmap_limit_detail, limit) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_limit_detail, reserved) == 4);
OFFMAP_ASSERT(offsetof(struct offmap_limit_detail, asked) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_limit_detail, allowed) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_limit_detail, used) == 24);

/* Payload of a completion with NoMemory, where device memory is what was asked
 * for. A device without MEMORY_TIERS sends a LimitDetail. */
struct offmap_memory_detail {
	/* Memory. */
	offmap_le32 limit;
	/* The tier that was asked for: its number plus one; 0: any. */
	offmap_le32 tier;
	/* Bytes that the command asked for. */
	offmap_le64 asked;
	/* Bytes of the largest free piece of the tier, or of all of them. */
	offmap_le64 allowed;
	/* Bytes in use, likewise. */
	offmap_le64 used;
	/* Bytes that are free, likewise. */
	offmap_le64 free;
};
OFFMAP_ASSERT(sizeof(struct offmap_memory_detail) == 40);
OFFMAP_ASSERT(offsetof(struct offmap_memory_detail, limit) == 0);
OFFMAP_ASSERT(offsetof(struct offmap_memory_detail, tier) == 4);
OFFMAP_ASSERT(offsetof(struct offmap_memory_detail, asked) == 8);
OFFMAP_ASSERT(offsetof(struct offmap_memory_detail, allowed) == 16);
OFFMAP_ASSERT(offsetof(struct offmap_memory_detail, used) == 24);
OFFMAP_ASSERT(offsetof(struct offmap_memory_detail, free) == 32);

/* ---- The memory of a RINGBUF map, which belongs to the host (abi §7.6). */

/* Bytes of a page of the ring. */
#define OFFMAP_RINGBUF_PAGE_BYTES UINT64_C(0x1000)

/* Offset of the consumer position, which the host writes. */
#define OFFMAP_RINGBUF_CONSUMER_POSITION UINT64_C(0)

/* Offset of the producer position, which the device writes. */
#define OFFMAP_RINGBUF_PRODUCER_POSITION UINT64_C(0x1000)

/* Offset of the count of records that the device dropped, which it writes. */
#define OFFMAP_RINGBUF_DROPPED UINT64_C(0x1008)

/* Offset of the data area. */
#define OFFMAP_RINGBUF_DATA UINT64_C(0x2000)

/* Bytes of a record's header. */
#define OFFMAP_RINGBUF_HEADER_BYTES UINT64_C(8)

/* The most bytes that a record may have: lengths have 30 bits, as the kernel's. */
#define OFFMAP_RINGBUF_RECORD_BYTES_MAX UINT64_C(0x3fffffff)

/* Bit of a header's length: the record is not complete. */
#define OFFMAP_RINGBUF_BUSY UINT32_C(0x80000000)

/* Bit of a header's length: consumers pass over the record. */
#define OFFMAP_RINGBUF_DISCARD UINT32_C(0x40000000)

/* The page offset that a header in the first page of the data area has: in the kernel, three
 * pages lie before it. */
#define OFFMAP_RINGBUF_FIRST_PAGE UINT64_C(3)

/* Flag of an output: no interrupt. */
#define OFFMAP_RINGBUF_NO_WAKEUP UINT64_C(1)

/* Flag of an output: an interrupt, whether the consumer had caught up or not. */
#define OFFMAP_RINGBUF_FORCE_WAKEUP UINT64_C(2)

#endif /* OFFMAP_ABI_H */
