// A wall clock that a test moves, loaded into the daemon by `process.rs` (LD_PRELOAD): the real one plus as many seconds as
// the file STEPPED_CLOCK says. The monotonic clock stays as it is, and so do timespec_get and gettimeofday, by which
// librdkafka makes the deadlines of its waits: those are kept by the kernel's clock. Nothing here allocates, because
// jemalloc asks for the time within its lock. (libfaketime deadlocks there: while it begins it looks for functions that
// glibc no longer has, and the loader allocates the text of each error.)

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
