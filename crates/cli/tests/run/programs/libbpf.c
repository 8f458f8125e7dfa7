// A program on libbpf: a map made by bpf_map_create_opts with map_ifindex, and the maps of an object with
// bpf_map__set_ifindex. Each is filled, batched, walked, pinned and opened again.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void fail(const char *what) {
    printf("wrong: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void is_on(int fd, unsigned ifindex, const char *what) {
    struct bpf_map_info info = {0};
    unsigned len = sizeof info;
    if (bpf_obj_get_info_by_fd(fd, &info, &len))
        fail(what);
    if (info.ifindex != ifindex) {
        printf("wrong: %s: ifindex %u\n", what, info.ifindex);
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    setvbuf(stdout, NULL, _IONBF, 0);
    unsigned ifindex = if_nametoindex(argv[1]);
    const char *pin = argv[2];
    LIBBPF_OPTS(bpf_map_create_opts, options, .map_ifindex = ifindex);
    int fd = bpf_map_create(BPF_MAP_TYPE_HASH, "table", 4, 8, 1024, &options);
    if (fd < 0)
        fail("bpf_map_create");
    is_on(fd, ifindex, "table");
    uint32_t keys[512];
    uint64_t values[512];
    for (uint32_t i = 0; i < 512; i++) {
        keys[i] = i;
        values[i] = i * 3;
    }
    uint32_t count = 512;
    if (bpf_map_update_batch(fd, keys, values, &count, NULL) || count != 512)
        fail("bpf_map_update_batch");
    if (bpf_obj_pin(fd, pin))
        fail("bpf_obj_pin");
    close(fd);
    fd = bpf_obj_get(pin);
    if (fd < 0)
        fail("bpf_obj_get");
    is_on(fd, ifindex, "the pinned table");
    uint32_t key, next, seen = 0;
    uint64_t sum = 0, value;
    int got = bpf_map_get_next_key(fd, NULL, &next);
    while (!got) {
        if (bpf_map_lookup_elem(fd, &next, &value))
            fail("bpf_map_lookup_elem");
        sum += value;
        seen++;
        key = next;
        got = bpf_map_get_next_key(fd, &key, &next);
    }
    if (seen != 512 || sum != 3 * 511 * 512 / 2)
        fail("the walk");
    uint32_t batch;
    count = 512;
    memset(values, 0, sizeof values);
    got = bpf_map_lookup_batch(fd, NULL, &batch, keys, values, &count, NULL);
    if ((got && errno != ENOENT) || !count)
        fail("bpf_map_lookup_batch");
    if (bpf_map_freeze(fd))
        fail("bpf_map_freeze");
    if (!bpf_map_update_elem(fd, &keys[0], &values[0], 0) || errno != EPERM)
        fail("an update of a frozen map");
    unlink(pin);
    close(fd);
    printf("table %u\n", seen);

    struct bpf_object *object = bpf_object__open(argv[3]);
    if (!object)
        fail("bpf_object__open");
    struct bpf_program *program;
    bpf_object__for_each_program(program, object) bpf_program__set_autoload(program, false);
    struct bpf_map *map;
    bpf_object__for_each_map(map, object) {
        bpf_map__set_pin_path(map, NULL);
        if (bpf_map__set_ifindex(map, ifindex))
            fail("bpf_map__set_ifindex");
    }
    if (bpf_object__load(object))
        fail("bpf_object__load");
    bpf_object__for_each_map(map, object) {
        is_on(bpf_map__fd(map), ifindex, bpf_map__name(map));
        printf("map %s\n", bpf_map__name(map));
        if (argc > 4 && !strcmp(bpf_map__name(map), "filter_ethernet") && bpf_map__pin(map, argv[4]))
            fail("bpf_map__pin");
    }
    bpf_object__close(object);
    return 0;
}
