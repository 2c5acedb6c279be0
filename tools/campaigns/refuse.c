/* To be preloaded: counts the calls of this process that change something below a folder, and lets one of them fail, or
   all from there on, before it has done anything; only `close` has closed.  A "short" write has written its first half. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long count;
static long chosen;
static int error_number, for_good, journal = -1;

/* Count from now on.  number: of the call that fails, 0 for none; error: its errno, 0 for a short write; log: a file
   descriptor that gets a line for each call, or -1. */
void refuse_arm(const char *below, long number, int error, int good, int log)
{
    snprintf(folder, sizeof folder, "%s", below);
    chosen = number, error_number = error, for_good = good, journal = log;
    atomic_store(&count, 0);
}

long refuse_count(void) { return atomic_load(&count); }

/* Whether this call is to be let through.  path: NULL for what the descriptor itself is; `errno` is that of the refusal. */
static int allowed(const char *call, int descriptor, const char *path)
{
    char base[PATH_MAX] = "", whole[2 * PATH_MAX], line[2 * PATH_MAX + 64];
    int before = errno;
    if (!folder[0])
        return 1;
    if (!path || (path[0] != '/' && descriptor != AT_FDCWD)) {
        snprintf(line, sizeof line, "/proc/self/fd/%d", descriptor);
        ssize_t length = readlink(line, base, sizeof base - 1);
        base[length < 0 ? 0 : length] = 0;
    } else if (path[0] != '/' && syscall(SYS_getcwd, base, sizeof base) < 0)
        base[0] = 0;
    snprintf(whole, sizeof whole, "%s%s%s", base, path && base[0] ? "/" : "", path ? path : "");
    errno = before;
    if (strncmp(whole, folder, strlen(folder)))
        return 1;
    long number = atomic_fetch_add(&count, 1) + 1;
    if (journal >= 0) {
        int length = snprintf(line, sizeof line, "%ld %s %s\n", number, call, whole + strlen(folder));
        syscall(SYS_write, journal, line, (size_t)length);
    }
    if (number != chosen && !(for_good && chosen && number > chosen))
        return 1;
    errno = error_number ? error_number : before;
    return 0;
}

/* The same, where nothing but a write can be short. */
static int refused(const char *call, int descriptor, const char *path)
{
    return !allowed(call, descriptor, path) && error_number;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define CALL(name, parameters, descriptor, path, ...) \
    int name parameters \
    { \
        REAL(name); \
        return refused(#name, descriptor, path) ? -1 : real(__VA_ARGS__); \
    }

CALL(fsync, (int fd), fd, NULL, fd)
CALL(fdatasync, (int fd), fd, NULL, fd)
CALL(ftruncate, (int fd, off_t size), fd, NULL, fd, size)
CALL(ftruncate64, (int fd, off64_t size), fd, NULL, fd, size)
CALL(rename, (const char *from, const char *to), AT_FDCWD, to, from, to)
CALL(renameat, (int a, const char *from, int b, const char *to), b, to, a, from, b, to)
CALL(unlink, (const char *path), AT_FDCWD, path, path)
CALL(unlinkat, (int fd, const char *path, int flags), fd, path, fd, path, flags)
CALL(rmdir, (const char *path), AT_FDCWD, path, path)
CALL(mkdir, (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
CALL(mkdirat, (int fd, const char *path, mode_t mode), fd, path, fd, path, mode)
CALL(symlink, (const char *target, const char *path), AT_FDCWD, path, target, path)
CALL(symlinkat, (const char *target, int fd, const char *path), fd, path, target, fd, path)

#define OPEN(name, parameters, descriptor, ...) \
    int name parameters \
    { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return flags & (O_CREAT | O_TRUNC) && refused(#name, descriptor, path) ? -1 : real(__VA_ARGS__, flags, mode); \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path)
OPEN(openat, (int fd, const char *path, int flags, ...), fd, fd, path)
OPEN(openat64, (int fd, const char *path, int flags, ...), fd, fd, path)

#define WRITE(name, parameters, descriptor, ...) \
    ssize_t name parameters \
    { \
        REAL(name); \
        if (!allowed(#name, descriptor, NULL)) { \
            if (error_number) \
                return -1; \
            size = (size + 1) / 2; \
        } \
        return real(__VA_ARGS__); \
    }

WRITE(write, (int fd, const void *from, size_t size), fd, fd, from, size)
WRITE(pwrite, (int fd, const void *from, size_t size, off_t at), fd, fd, from, size, at)
WRITE(pwrite64, (int fd, const void *from, size_t size, off64_t at), fd, fd, from, size, at)
WRITE(copy_file_range, (int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags), to, \
      from, a, to, b, size, flags)

#define RESERVE(name, type) \
    int name(int fd, type from, type size) \
    { \
        REAL(name); \
        return refused(#name, fd, NULL) ? error_number : real(fd, from, size); \
    }

RESERVE(posix_fallocate, off_t)
RESERVE(posix_fallocate64, off64_t)

int close(int fd)
{
    REAL(close);
    int writes = folder[0] && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY, bad = writes && refused("close", fd, NULL);
    int before = errno, result = real(fd);
    if (!bad)
        return result;
    errno = before;
    return -1;
}
