#include "frontends/local/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace fairway::local {
namespace {

// Libraries open sockets without close-on-exec; a child that kept our listening ones would keep our ports.
// Async-signal-safe, as all that runs between fork and exec must be.
void CloseOnExecFrom(int first) {
#ifdef SYS_close_range
  constexpr unsigned kCloexec = 1U << 2;
  if (syscall(SYS_close_range, static_cast<unsigned>(first), ~0U, kCloexec) == 0) return;
#endif
  for (int fd = first; fd < 65536; ++fd) fcntl(fd, F_SETFD, FD_CLOEXEC);
}

[[noreturn]] void Become(char* const* argv, int output, pid_t parent) {
  constexpr int kCannotExecute = 127;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(kCannotExecute);  // it died before prctl
  setpgid(0, 0);
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGCHLD, SIGQUIT, SIGUSR1, SIGUSR2}) {
    signal(number, SIG_DFL);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);  // loop threads run with all signals blocked
  const int nowhere = open("/dev/null", O_RDONLY);
  if (nowhere >= 0) dup2(nowhere, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  CloseOnExecFrom(STDERR_FILENO + 1);
  execv(argv[0], argv);
  static constexpr char kMessage[] = "cannot be executed\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kMessage, sizeof kMessage - 1);
  _exit(kCannotExecute);
}

}  // namespace

base::Result<Child> StartChild(const std::vector<std::string>& argv) {
  std::vector<char*> arguments;
  arguments.reserve(argv.size() + 1);
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return base::Fail(base::ErrorCode::kIo, std::string("pipe: ") + std::strerror(errno));
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) Become(arguments.data(), ends[1], parent);
  const int error = errno;
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    return base::Fail(base::ErrorCode::kIo, "cannot start " + argv[0] + ": " + std::strerror(error));
  }
  return Child{pid, ends[0]};
}

std::string DescribeExit(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    const int number = WTERMSIG(wait_status);
    return "killed by signal " + std::to_string(number) + " (" + strsignal(number) + ")";
  }
  return "exit status " + std::to_string(WEXITSTATUS(wait_status));
}

std::optional<int> Reap(pid_t pid) {
  int status = 0;
  const pid_t got = waitpid(pid, &status, WNOHANG);
  if (got == pid) return status;
  if (got < 0 && errno == ECHILD) return 0;
  return std::nullopt;
}

}  // namespace fairway::local
