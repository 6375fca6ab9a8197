/* A machine whose wall clock jumps: preloaded into processes, it adds what the file RAYWATCH_CLOCK
 * says, in nanoseconds as a signed 64-bit number, to every answer about the time of day. Clocks
 * that only count on are left alone: Linux never lets them jump. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *offset;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("RAYWATCH_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *at = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) offset = at;
    close(file);
}

static void shift(struct timespec *t) {
    int64_t total = (int64_t)t->tv_sec * 1000000000 + t->tv_nsec + (offset ? *offset : 0);
    t->tv_sec = total / 1000000000;
    t->tv_nsec = total % 1000000000;
}

int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int said = real(id, t);
    if (said == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) shift(t);
    return said;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    (void)zone;
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return (time_t)-1;
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
