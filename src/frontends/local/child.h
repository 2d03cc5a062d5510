// Starting a child process that never outlives us.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace fairway::local {

struct Child {
  pid_t pid = -1;
  int output = -1;  // read end of its standard output and error; the caller closes it
};

// argv[0] is a path, not searched for. The child gets its own process group (Ctrl-C in a terminal reaches us
// alone), no inherited descriptor but 0 to 2, default signals, and SIGKILL when the calling THREAD ends: call
// it on a thread that lives as long as the child shall. An executable that cannot be executed is seen as exit
// status 127.
base::Result<Child> StartChild(const std::vector<std::string>& argv);

// "exit status 1", "killed by signal 9 (Killed)".
std::string DescribeExit(int wait_status);

// Without waiting. Nothing while it runs; its wait status once (0 where it was reaped by somebody else).
std::optional<int> Reap(pid_t pid);

}  // namespace fairway::local
