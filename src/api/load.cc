// Reading files and folders, with bounds: nothing here waits for ever or grows without end, whatever the path
// leads to.
#include "api/load.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <set>

#include "api/manifests.h"
#include "api/text_rules.h"
#include "api/value.h"
#include "base/clock.h"
#include "base/result.h"

namespace fairway::api {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFilesInFolder = 10'000;
constexpr size_t kMaxBytesOfAll = 128u << 20;

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ > STDERR_FILENO) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

tl::unexpected<base::Error> TooLarge(size_t max_bytes) {
  std::string message = "larger than " + std::to_string(max_bytes >> 20) + " MiB";
  if (max_bytes == kMaxFileBytes) message += "; split it into files of one folder";
  return base::Fail(base::ErrorCode::kIo, std::move(message));
}

// How long something that is no file may take: silence, and in all.
struct Patience {
  int silence_s;
  int in_all_s;
};
constexpr Patience kPipe{5, 30};
constexpr Patience kStandardInput{60, 600};  // what writes there may have to ask an API server first

base::Result<std::string> ReadAll(int fd, const Patience& patience, size_t max_bytes) {
  const base::SystemClock clock;
  const base::Nanos start = clock.Now();
  std::string text;
  std::array<char, 65536> chunk{};
  for (;;) {
    if (clock.Now() - start > patience.in_all_s * base::kSecond) {
      return base::Fail(base::ErrorCode::kIo,
                        "did not end within " + std::to_string(patience.in_all_s) + " s");
    }
    pollfd ready{fd, POLLIN, 0};
    if (::poll(&ready, 1, patience.silence_s * 1000) == 0) {
      return base::Fail(base::ErrorCode::kIo,
                        "no data came within " + std::to_string(patience.silence_s) + " s");
    }
    const ssize_t got = ::read(fd, chunk.data(), chunk.size());
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got < 0)
      return base::Fail(base::ErrorCode::kIo, std::string("cannot be read: ") + std::strerror(errno));
    if (got == 0) return text;
    text.append(chunk.data(), static_cast<size_t>(got));
    if (text.size() > max_bytes) return TooLarge(max_bytes);
  }
}

std::string_view KindOf(mode_t mode) {
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

base::Result<std::string> ReadPath(const std::string& path, const LoadOptions& options) {
  if (path == "-") {
    if (options.only_files) return base::Fail(base::ErrorCode::kIo, "can be read once only");
    return ReadAll(STDIN_FILENO, kStandardInput, options.max_bytes);
  }
  // Not blocking: opening a pipe that nobody writes to must not hang.
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0)
    return base::Fail(base::ErrorCode::kIo, std::string("cannot be opened: ") + std::strerror(errno));
  struct stat info{};
  if (::fstat(file.get(), &info) != 0)
    return base::Fail(base::ErrorCode::kIo, std::string("cannot be read: ") + std::strerror(errno));
  if (S_ISREG(info.st_mode) && static_cast<uint64_t>(info.st_size) > options.max_bytes)
    return TooLarge(options.max_bytes);
  if (!S_ISREG(info.st_mode) && options.only_files) {
    return base::Fail(base::ErrorCode::kIo, "is " + std::string(KindOf(info.st_mode)) + ", not a file");
  }
  return ReadAll(file.get(), kPipe, options.max_bytes);
}

void AddToFingerprint(LoadResult& result, std::string_view text) {
  result.fingerprint = result.fingerprint * 1'099'511'628'211U + std::hash<std::string_view>{}(text);
}

void Fail(LoadResult& result, const std::string& path, std::string message) {
  result.problems.push_back({Severity::kError, {path, 0}, "", "", std::move(message)});
}

// "; did you mean \"examples/intro-pool.yaml\"?", from what stands in the folder of a path that does not
// exist.
std::string NearestPath(const std::string& path) {
  const fs::path wanted(path);
  const fs::path folder = wanted.has_parent_path() ? wanted.parent_path() : fs::path(".");
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end && names.size() < 1000;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with('.')) continue;
    names.push_back(wanted.has_parent_path() ? (wanted.parent_path() / name).string() : name);
  }
  std::sort(names.begin(), names.end());
  return DidYouMean(path, names);
}

void Append(LoadResult& result, LoadResult&& part) {
  const auto move_all = [](auto& from, auto& to) {
    std::move(from.begin(), from.end(), std::back_inserter(to));
  };
  move_all(part.manifests.pools, result.manifests.pools);
  move_all(part.manifests.models, result.manifests.models);
  move_all(part.manifests.objectives, result.manifests.objectives);
  move_all(part.manifests.rewrites, result.manifests.rewrites);
  move_all(part.manifests.gateways, result.manifests.gateways);
  move_all(part.manifests.routes, result.manifests.routes);
  move_all(part.manifests.endpoints, result.manifests.endpoints);
  move_all(part.problems, result.problems);
  move_all(part.files, result.files);
}

// Files in the order of their names, as long as they are not too much together.
struct Loading {
  const LoadOptions& options;
  std::set<std::string> seen = {};  // a file that is named twice is read once
  size_t bytes = 0;
};

void LoadFile(const std::string& path, Loading& loading, LoadResult& result) {
  if (loading.bytes > kMaxBytesOfAll) {
    return Fail(result, path, "is not read: the files before it have more than 128 MiB together");
  }
  const auto text = ReadPath(path, loading.options);
  if (text) loading.bytes += text->size();
  AddToFingerprint(result, path);
  AddToFingerprint(result, text ? *text : text.error().message);
  if (!text) {
    Fail(result, path, text.error().message);
    return;
  }
  Append(result, ParseManifests(*text, path, loading.options.check_pattern));
}

void LoadFolder(const std::string& folder, Loading& loading, LoadResult& result) {
  std::vector<std::string> files;
  std::error_code error;
  fs::directory_iterator it(folder, error);
  for (const fs::directory_iterator end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    // What is named like a manifest but is a pipe, a device or a folder is none. A dangling link is reported
    // by opening it.
    std::error_code ignored;
    const fs::file_status status = it->status(ignored);
    if (!IsManifestName(name) || (fs::exists(status) && !fs::is_regular_file(status))) continue;
    files.push_back((fs::path(folder) / name).string());
    if (files.size() > kMaxFilesInFolder) {
      Fail(result, folder, "more than 10000 manifest files in one folder");
      return;
    }
  }
  if (error) {
    Fail(result, folder, "cannot be read: " + error.message());
    return;
  }
  if (files.empty()) {
    Fail(result, folder,
         "no *.yaml, *.yml or *.json file in this folder (folders inside it are not looked into)");
    return;
  }
  std::sort(files.begin(), files.end());
  for (const std::string& file : files) {
    if (loading.seen.insert(fs::path(file).lexically_normal().string()).second)
      LoadFile(file, loading, result);
  }
}

}  // namespace

bool IsManifestName(std::string_view name) {
  if (name.starts_with('.') || name == "kustomization.yaml" || name == "kustomization.yml") return false;
  return name.ends_with(".yaml") || name.ends_with(".yml") || name.ends_with(".json");
}

base::Result<std::string> ReadFile(const std::string& path, const LoadOptions& options) {
  struct stat info{};
  if (path == "-" || ::stat(path.c_str(), &info) == 0) {
    if (path != "-" && S_ISDIR(info.st_mode))
      return base::Fail(base::ErrorCode::kIo, "is a folder, not a file");
    return ReadPath(path, options);
  }
  const bool missing = errno == ENOENT || errno == ENOTDIR;
  return base::Fail(base::ErrorCode::kIo, missing ? "no such file" + NearestPath(path)
                                                  : std::string("cannot be opened: ") + std::strerror(errno));
}

LoadResult LoadManifests(const std::vector<std::string>& paths) { return LoadManifests(paths, {}); }

LoadResult LoadManifests(const std::vector<std::string>& paths, const LoadOptions& options) {
  LoadResult result;
  Loading loading{options};
  for (const std::string& path : paths) {
    struct stat info{};
    if (path != "-" && ::stat(path.c_str(), &info) != 0) {
      const bool missing = errno == ENOENT || errno == ENOTDIR;
      Fail(result, path,
           missing ? "no such file or folder" + NearestPath(path)
                   : std::string("cannot be opened: ") + std::strerror(errno));
    } else if (path != "-" && S_ISDIR(info.st_mode)) {
      LoadFolder(path, loading, result);
    } else if (loading.seen.insert(path == "-" ? path : fs::path(path).lexically_normal().string()).second) {
      LoadFile(path, loading, result);
    }
  }
  // What kept a file or folder from being read is part of the state too.
  for (const Problem& problem : result.problems)
    AddToFingerprint(result, problem.where.file + problem.message);
  CheckReferences(result.manifests, result.problems);
  return result;
}

}  // namespace fairway::api
