#include "server/process_stats.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>

namespace sluice::server {

std::string ReadProc(const char* path) {
  char text[1024];
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return "";
  const ssize_t got = read(fd, text, sizeof text);
  close(fd);
  return got <= 0 ? "" : std::string(text, static_cast<size_t>(got));
}

namespace {

struct Pages {
  unsigned long long all = 0, resident = 0;
};

Pages ReadPages() {
  Pages pages;
  if (std::sscanf(ReadProc("/proc/self/statm").c_str(), "%llu %llu", &pages.all, &pages.resident) !=
      2) {
    return {};
  }
  return pages;
}

uint64_t PageBytes() { return static_cast<uint64_t>(sysconf(_SC_PAGESIZE)); }

// The 22nd field of proc(5)'s stat; the second, a name, may hold anything but ends with the last
// parenthesis.
double TicksFromBootToStart() {
  const std::string stat = ReadProc("/proc/self/stat");
  const size_t name_end = stat.rfind(") ");
  if (name_end == std::string::npos) return 0;
  const char* field = stat.c_str() + name_end + 2;  // the third
  for (int i = 3; i < 22; ++i) {
    field = std::strchr(field, ' ');
    if (field == nullptr) return 0;
    ++field;
  }
  return std::strtod(field, nullptr);
}

double Now(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

}  // namespace

uint64_t ResidentBytes() { return ReadPages().resident * PageBytes(); }
uint64_t VirtualBytes() { return ReadPages().all * PageBytes(); }

double CpuSeconds() { return Now(CLOCK_PROCESS_CPUTIME_ID); }

uint64_t OpenFiles() {
  std::error_code error;
  uint64_t count = 0;
  std::filesystem::directory_iterator file("/proc/self/fd", error);
  if (error == std::errc::too_many_files_open) return MaxOpenFiles();
  for (; !error && file != std::filesystem::directory_iterator(); file.increment(error)) ++count;
  return count == 0 ? 0 : count - 1;  // the iterator's own
}

uint64_t MaxOpenFiles() {
  rlimit limit{};
  return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 0;
}

double StartTimeSeconds() {
  return Now(CLOCK_REALTIME) - Now(CLOCK_BOOTTIME) +
         TicksFromBootToStart() / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace sluice::server
