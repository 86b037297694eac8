/* Makes system calls fail as some file systems make them. Loaded into a process before libc, told by three variables:

   TRD_FAULT        CALL:ERRNO; CALL is flock, fsync, fsync-directory, rename, unlink, mkdir, open (for writing) or write-all
                    (open, rename, unlink and mkdir, as on a file system that has become read-only)
   TRD_FAULT_BELOW  part of the paths that are concerned; left out: all
   TRD_FAULT_WHEN   the file whose being there lets the fault begin; left out: at once
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int (*next_access)(const char *, int);

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

static int fails(const char *call, const char *path) {
    const char *fault = getenv("TRD_FAULT"), *below = getenv("TRD_FAULT_BELOW"), *when = getenv("TRD_FAULT_WHEN");
    size_t length;
    int writes = !strcmp(call, "open") || !strcmp(call, "rename") || !strcmp(call, "unlink") || !strcmp(call, "mkdir");
    if (!fault || !strchr(fault, ':')) return 0;
    length = strchr(fault, ':') - fault;
    if (!(strlen(call) == length && !strncmp(call, fault, length)) && !(writes && !strncmp(fault, "write-all:", 10))) return 0;
    if (below && !(path && strstr(path, below))) return 0;
    if (!next_access) next_access = next("access");
    if (when && next_access(when, F_OK)) return 0;
    errno = atoi(strchr(fault, ':') + 1);
    return 1;
}

static int fails_fd(const char *call, int fd) {
    char link[64], path[4096] = "";
    ssize_t length;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return fails(call, path);
}

int flock(int fd, int operation) {
    int (*real)(int, int) = next("flock");
    return fails_fd("flock", fd) ? -1 : real(fd, operation);
}

int fsync(int fd) {
    int (*real)(int) = next("fsync");
    struct stat status;
    int is_directory = !fstat(fd, &status) && S_ISDIR(status.st_mode);
    return fails_fd(is_directory ? "fsync-directory" : "fsync", fd) ? -1 : real(fd);
}

int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = next("rename");
    return fails("rename", to) ? -1 : real(from, to);
}

int unlink(const char *path) {
    int (*real)(const char *) = next("unlink");
    return fails("unlink", path) ? -1 : real(path);
}

int mkdir(const char *path, mode_t mode) {
    int (*real)(const char *, mode_t) = next("mkdir");
    return fails("mkdir", path) ? -1 : real(path, mode);
}

#define OPEN(name)                                                                            \
    int name(const char *path, int flags, ...) {                                              \
        int (*real)(const char *, int, ...) = next(#name);                                    \
        mode_t mode = 0;                                                                      \
        if (flags & O_CREAT) {                                                                \
            va_list rest;                                                                     \
            va_start(rest, flags);                                                            \
            mode = va_arg(rest, mode_t);                                                      \
            va_end(rest);                                                                     \
        }                                                                                     \
        return (flags & O_ACCMODE) != O_RDONLY && fails("open", path) ? -1 : real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
