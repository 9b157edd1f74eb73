// librdkafka waits with C11's cnd_timedwait, whose deadline libfaketime does not translate; it does translate that of
// pthread_cond_timedwait. In glibc both work on the same objects. Loaded before libfaketime by `process.rs`.

#include <errno.h>
#include <pthread.h>
#include <threads.h>

int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *deadline) {
    int result = pthread_cond_timedwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, deadline);
    return result == 0 ? thrd_success : result == ETIMEDOUT ? thrd_timedout : thrd_error;
}
