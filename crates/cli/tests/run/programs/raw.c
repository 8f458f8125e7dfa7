// A program that makes raw bpf(2) calls, static and without libbpf: it creates a map on the interface that it
// is given, and does what it is told. Prints one line for each thing that it finds, and exits with 1 at the first
// that is wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long bpf(int command, union bpf_attr *attr, unsigned size) {
    return syscall(SYS_bpf, command, attr, size);
}

static void fail(const char *what) {
    printf("wrong: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int create(unsigned type, unsigned key, unsigned value, unsigned entries, const char *interface) {
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_type = type;
    attr.key_size = key;
    attr.value_size = value;
    attr.max_entries = entries;
    strcpy(attr.map_name, "raw");
    if (interface && strcmp(interface, "-")) {
        attr.map_ifindex = if_nametoindex(interface);
        if (!attr.map_ifindex)
            fail("if_nametoindex");
    }
    return bpf(BPF_MAP_CREATE, &attr, sizeof attr);
}

static int element(int command, int fd, const void *key, void *value, uint64_t flags) {
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_fd = fd;
    attr.key = (uint64_t)(uintptr_t)key;
    attr.value = (uint64_t)(uintptr_t)value;
    attr.flags = flags;
    return bpf(command, &attr, sizeof attr);
}

static int hash(const char *interface) {
    int fd = create(BPF_MAP_TYPE_HASH, 4, 8, 4096, interface);
    if (fd < 0)
        fail("MAP_CREATE");
    return fd;
}

static int cmp(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

// Median time of a lookup, in nanoseconds.
static void latency(const char *interface) {
    enum { N = 20000 };
    static double times[N];
    int fd = hash(interface);
    uint32_t key = 7;
    uint64_t value = 9;
    if (element(BPF_MAP_UPDATE_ELEM, fd, &key, &value, 0))
        fail("UPDATE");
    for (int i = 0; i < N; i++) {
        double from = now();
        if (element(BPF_MAP_LOOKUP_ELEM, fd, &key, &value, 0))
            fail("LOOKUP");
        times[i] = now() - from;
    }
    qsort(times, N, sizeof *times, cmp);
    printf("lookup_ns %.0f\n", times[N / 2]);
    enum { B = 1024 };
    static uint32_t keys[B];
    static uint64_t values[B];
    for (int i = 0; i < B; i++)
        keys[i] = i;
    for (int i = 0; i < 200; i++) {
        union bpf_attr attr;
        memset(&attr, 0, sizeof attr);
        attr.batch.keys = (uint64_t)(uintptr_t)keys;
        attr.batch.values = (uint64_t)(uintptr_t)values;
        attr.batch.count = B;
        attr.batch.map_fd = fd;
        double from = now();
        if (bpf(BPF_MAP_UPDATE_BATCH, &attr, sizeof attr))
            fail("UPDATE_BATCH");
        times[i] = now() - from;
    }
    qsort(times, 200, sizeof *times, cmp);
    printf("update_batch_1024_ns %.0f\n", times[100]);
    for (int i = 0; i < 200; i++) {
        union bpf_attr attr;
        uint32_t token;
        memset(&attr, 0, sizeof attr);
        attr.batch.out_batch = (uint64_t)(uintptr_t)&token;
        attr.batch.keys = (uint64_t)(uintptr_t)keys;
        attr.batch.values = (uint64_t)(uintptr_t)values;
        attr.batch.count = B;
        attr.batch.map_fd = fd;
        double from = now();
        if (bpf(BPF_MAP_LOOKUP_BATCH, &attr, sizeof attr) && errno != ENOENT)
            fail("LOOKUP_BATCH");
        times[i] = now() - from;
    }
    qsort(times, 200, sizeof *times, cmp);
    printf("lookup_batch_1024_ns %.0f\n", times[100]);
}

static void tick(int number) {
    (void)number;
}

// Update and delete, each of which a repetition would make fail, under a timer whose signals restart calls.
static void signals(const char *interface, int pairs) {
    int fd = hash(interface);
    struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval timer = {{0, 300}, {0, 300}};
    setitimer(ITIMER_REAL, &timer, NULL);
    for (int i = 0; i < pairs; i++) {
        uint32_t key = i;
        uint64_t value = i;
        if (element(BPF_MAP_UPDATE_ELEM, fd, &key, &value, BPF_NOEXIST))
            fail("UPDATE NOEXIST under signals");
        if (element(BPF_MAP_DELETE_ELEM, fd, &key, NULL, 0))
            fail("DELETE under signals");
    }
    printf("pairs %d\n", pairs);
}

// Short-lived processes, one after the other: more than descriptors may be open.
static void children(const char *interface, int number) {
    int fd = hash(interface);
    for (uint32_t i = 0; i < (uint32_t)number; i++) {
        int pid = fork();
        if (pid < 0)
            fail("fork");
        if (!pid) {
            uint32_t key = i;
            uint64_t value = i + 1;
            _exit(element(BPF_MAP_UPDATE_ELEM, fd, &key, &value, BPF_NOEXIST) != 0);
        }
        int status;
        if (waitpid(pid, &status, 0) < 0 || status)
            fail("a child's update");
        uint64_t value = 0;
        if (element(BPF_MAP_LOOKUP_ELEM, fd, &i, &value, 0) || value != i + 1)
            fail("what a child wrote");
    }
    printf("children %d\n", number);
}

static int shared = -1;

static void *adds(void *argument) {
    uint32_t first = (uint32_t)(uintptr_t)argument * 32;
    for (uint32_t i = 0; i < 32; i++) {
        uint32_t key = first + i;
        uint64_t value = key;
        if (element(BPF_MAP_UPDATE_ELEM, shared, &key, &value, BPF_NOEXIST))
            fail("UPDATE of a thread");
        if (element(BPF_MAP_LOOKUP_ELEM, shared, &key, &value, 0) || value != key)
            fail("LOOKUP of a thread");
    }
    return NULL;
}

static int count(int fd) {
    uint32_t key, next;
    int n = 0;
    int got = element(BPF_MAP_GET_NEXT_KEY, fd, NULL, &next, 0);
    while (!got) {
        n++;
        key = next;
        got = element(BPF_MAP_GET_NEXT_KEY, fd, &key, &next, 0);
    }
    if (errno != ENOENT)
        fail("GET_NEXT_KEY");
    return n;
}

static void threads(const char *interface) {
    shared = hash(interface);
    pthread_t all[64];
    for (uintptr_t i = 0; i < 64; i++)
        if (pthread_create(&all[i], NULL, adds, (void *)i))
            fail("pthread_create");
    for (int i = 0; i < 64; i++)
        pthread_join(all[i], NULL);
    if (count(shared) != 64 * 32)
        fail("the count after 64 threads");
    printf("threads %d\n", count(shared));
}

static void processes(const char *interface) {
    shared = hash(interface);
    for (uintptr_t i = 0; i < 64; i++) {
        int pid = fork();
        if (pid < 0)
            fail("fork");
        if (!pid) {
            adds((void *)i);
            _exit(0);
        }
    }
    for (int i = 0; i < 64; i++) {
        int status;
        if (wait(&status) < 0 || status)
            fail("a process");
    }
    if (count(shared) != 64 * 32)
        fail("the count after 64 processes");
    printf("processes %d\n", count(shared));
}

// Fills the map of the device until it says that it is full, over and over: what is closed is given back.
static void lives(const char *interface, int rounds) {
    for (int i = 0; i < rounds; i++) {
        int fd = create(BPF_MAP_TYPE_HASH, 8, 1024, 100000, interface);
        if (fd < 0)
            fail("MAP_CREATE of a round");
        int other = dup(fd);
        close(fd);
        uint64_t key = i, value[128] = {i};
        if (element(BPF_MAP_UPDATE_ELEM, other, &key, value, 0))
            fail("UPDATE by the copy of a descriptor");
        close(other);
        if (element(BPF_MAP_UPDATE_ELEM, other, &key, value, 0) != -1 || errno != EBADF)
            fail("EBADF after the last close");
    }
    printf("rounds %d\n", rounds);
}

static volatile union bpf_attr torn;
static volatile int stop;

static void *tear(void *argument) {
    (void)argument;
    while (!stop) {
        torn.map_fd ^= 0x55;
        torn.key ^= 0x1000;
        torn.flags ^= 3;
    }
    return NULL;
}

// Another thread writes to the attribute all the time: errors, and nothing else.
static void tears(const char *interface, int calls) {
    int fd = hash(interface);
    uint32_t key = 1;
    uint64_t value = 2;
    pthread_t thread;
    torn.map_fd = fd;
    torn.key = (uint64_t)(uintptr_t)&key;
    torn.value = (uint64_t)(uintptr_t)&value;
    if (pthread_create(&thread, NULL, tear, NULL))
        fail("pthread_create");
    int good = 0;
    for (int i = 0; i < calls; i++)
        good += !bpf(BPF_MAP_UPDATE_ELEM, (union bpf_attr *)&torn, sizeof torn);
    stop = 1;
    pthread_join(thread, NULL);
    if (element(BPF_MAP_LOOKUP_ELEM, fd, &key, &value, 0) && errno != ENOENT)
        fail("LOOKUP afterwards");
    printf("torn %d\n", calls);
    fprintf(stderr, "%d of them went well\n", good);
}

// What cannot work is refused, and says why: programs of the kernel, and maps that are used by other calls.
static void refusals(const char *interface) {
    int fd = hash(interface);
    static char log[4096];
    struct bpf_insn code[] = {
        {.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = fd},
        {0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0},
        {.code = BPF_JMP | BPF_EXIT},
    };
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
    attr.insns = (uint64_t)(uintptr_t)code;
    attr.insn_cnt = 4;
    attr.license = (uint64_t)(uintptr_t)"GPL";
    attr.log_level = 1;
    attr.log_buf = (uint64_t)(uintptr_t)log;
    attr.log_size = sizeof log;
    if (bpf(BPF_PROG_LOAD, &attr, sizeof attr) != -1 || errno != EINVAL)
        fail("a program that refers to the map");
    printf("log %s", log);
    if (create(BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, interface) != -1 || errno != EINVAL)
        fail("a ring buffer");
    if (create(BPF_MAP_TYPE_RINGBUF, 0, 0, 4096, NULL) >= 0 && !getenv("KERNEL"))
        fail("a ring buffer that nobody can map");
    union bpf_attr link;
    union bpf_iter_link_info over = {.map.map_fd = fd};
    memset(&link, 0, sizeof link);
    link.link_create.prog_fd = -1;
    link.link_create.attach_type = BPF_TRACE_ITER;
    link.link_create.iter_info = (uint64_t)(uintptr_t)&over;
    link.link_create.iter_info_len = sizeof over;
    if (bpf(BPF_LINK_CREATE, &link, sizeof link) != -1 || errno != EINVAL)
        fail("an iterator over the map");
    // A program that refers to none is the kernel's affair; without privileges it may not load it.
    attr.insns = (uint64_t)(uintptr_t)(code + 2);
    attr.insn_cnt = 2;
    int program = bpf(BPF_PROG_LOAD, &attr, sizeof attr);
    if (program < 0 && errno != EPERM)
        fail("a program without maps");
    // So are other descriptors.
    uint32_t key = 0;
    uint64_t value;
    if (element(BPF_MAP_LOOKUP_ELEM, 0, &key, &value, 0) != -1 || (errno != EINVAL && errno != EBADF))
        fail("a lookup on standard input");
    if (element(BPF_MAP_LOOKUP_ELEM, 9999, &key, &value, 0) != -1 || errno != EBADF)
        fail("a lookup on no descriptor");
    if (element(BPF_MAP_LOOKUP_ELEM, fd, (void *)8, &value, 0) != -1 || errno != EFAULT)
        fail("a key that is not there");
    printf("refusals\n");
}

// Maps of maps of the device: a descriptor goes in, an id comes out.
static void inner(const char *interface) {
    int fd = hash(interface);
    union bpf_attr attr;
    memset(&attr, 0, sizeof attr);
    attr.map_type = BPF_MAP_TYPE_ARRAY_OF_MAPS;
    attr.key_size = 4;
    attr.value_size = 4;
    attr.max_entries = 4;
    attr.inner_map_fd = fd;
    attr.map_ifindex = if_nametoindex(interface);
    int outer = bpf(BPF_MAP_CREATE, &attr, sizeof attr);
    if (outer < 0)
        fail("MAP_CREATE of a map of maps");
    uint32_t key = 2, id = 0, value = fd;
    if (element(BPF_MAP_UPDATE_ELEM, outer, &key, &value, 0))
        fail("UPDATE of a map of maps");
    if (element(BPF_MAP_LOOKUP_ELEM, outer, &key, &id, 0))
        fail("LOOKUP of a map of maps");
    struct bpf_map_info info;
    memset(&info, 0, sizeof info);
    memset(&attr, 0, sizeof attr);
    attr.info.bpf_fd = fd;
    attr.info.info_len = sizeof info;
    attr.info.info = (uint64_t)(uintptr_t)&info;
    if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof attr))
        fail("OBJ_GET_INFO_BY_FD");
    if (info.id != id || info.ifindex != if_nametoindex(interface))
        fail("the id of the inner map");
    value = 0;
    if (element(BPF_MAP_UPDATE_ELEM, outer, &key, &value, 0) != -1)
        fail("standard input as an inner map");
    // The map in it lives although the program has closed it.
    uint32_t one = 1;
    uint64_t five = 5;
    if (element(BPF_MAP_UPDATE_ELEM, fd, &one, &five, 0))
        fail("UPDATE of the inner map");
    close(fd);
    usleep(100000);
    uint32_t again = 0;
    if (element(BPF_MAP_LOOKUP_ELEM, outer, &key, &again, 0) || again != id)
        fail("LOOKUP after the inner map was closed");
    memset(&attr, 0, sizeof attr);
    attr.map_id = id;
    fd = bpf(BPF_MAP_GET_FD_BY_ID, &attr, sizeof attr);
    five = 0;
    if (fd < 0 || element(BPF_MAP_LOOKUP_ELEM, fd, &one, &five, 0) || five != 5)
        fail("the inner map by its id");
    close(fd);
    if (element(BPF_MAP_DELETE_ELEM, outer, &key, NULL, 0))
        fail("DELETE in a map of maps");
    usleep(100000);
    if (bpf(BPF_MAP_GET_FD_BY_ID, &attr, sizeof attr) != -1 || errno != ENOENT)
        fail("the inner map after it was taken out");
    // The kernel's own maps of maps do not take it, by none of three ways.
    fd = hash(interface);
    memset(&attr, 0, sizeof attr);
    attr.map_type = BPF_MAP_TYPE_ARRAY_OF_MAPS;
    attr.key_size = 4;
    attr.value_size = 4;
    attr.max_entries = 4;
    attr.inner_map_fd = fd;
    int kernels = bpf(BPF_MAP_CREATE, &attr, sizeof attr);
    if (kernels >= 0) {
        struct bpf_map_info what;
        memset(&what, 0, sizeof what);
        memset(&attr, 0, sizeof attr);
        attr.info.bpf_fd = kernels;
        attr.info.info_len = sizeof what;
        attr.info.info = (uint64_t)(uintptr_t)&what;
        // In memory mode it is one of offmap's own.
        if (bpf(BPF_OBJ_GET_INFO_BY_FD, &attr, sizeof attr) || getenv("KERNEL"))
            fail("a map of maps of the kernel with a template of the device");
    }
    printf("inner\n");
}

int main(int argc, char **argv) {
    if (argc < 3)
        return 2;
    int number = argc > 3 ? atoi(argv[3]) : 0;
    setvbuf(stdout, NULL, _IONBF, 0);
    if (!strcmp(argv[1], "latency"))
        latency(argv[2]);
    else if (!strcmp(argv[1], "signals"))
        signals(argv[2], number);
    else if (!strcmp(argv[1], "threads"))
        threads(argv[2]);
    else if (!strcmp(argv[1], "processes"))
        processes(argv[2]);
    else if (!strcmp(argv[1], "lives"))
        lives(argv[2], number);
    else if (!strcmp(argv[1], "tears"))
        tears(argv[2], number);
    else if (!strcmp(argv[1], "children"))
        children(argv[2], number);
    else if (!strcmp(argv[1], "refusals"))
        refusals(argv[2]);
    else if (!strcmp(argv[1], "inner"))
        inner(argv[2]);
    else if (!strcmp(argv[1], "wait")) {
        int fd = hash(argv[2]);
        uint32_t key = 1;
        uint64_t value = 2;
        if (element(BPF_MAP_UPDATE_ELEM, fd, &key, &value, 0))
            fail("UPDATE");
        printf("ready\n");
        while (!element(BPF_MAP_LOOKUP_ELEM, fd, &key, &value, 0))
            ;
        printf("lookup: %s\n", strerror(errno));
        return 3;
    } else
        return 2;
    return 0;
}
