// A wall clock that a test moves. `process.rs` loads it into the daemon with LD_PRELOAD. The time is the real one plus
// the number of seconds in the file that STEPPED_CLOCK names. The monotonic clock is unchanged, and so are timespec_get
// and gettimeofday: librdkafka computes the deadlines of its waits from them, and the kernel applies its own clock to
// these deadlines. This code must not allocate, because jemalloc asks for the time while it holds its lock. libfaketime
// deadlocks there: at its start it looks up functions that glibc no longer has, and the loader allocates each error
// text.

#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long moved_by(void) {
    const char *path = getenv("STEPPED_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    char text[32];
    ssize_t length = file < 0 ? 0 : read(file, text, sizeof text - 1);
    if (file >= 0) {
        close(file);
    }
    text[length > 0 ? length : 0] = 0;
    return strtol(text, NULL, 10);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        now->tv_sec += moved_by();
    }
    return result;
}

time_t time(time_t *copy) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    if (copy) {
        *copy = time.tv_sec;
    }
    return time.tv_sec;
}
