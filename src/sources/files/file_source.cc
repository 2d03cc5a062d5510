#include "sources/files/file_source.h"

#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <filesystem>
#include <future>
#include <map>
#include <set>
#include <utility>

namespace fairway::sources {
namespace {

namespace fs = std::filesystem;

// Where inotify does not reach (network file systems, targets of symbolic links, no watches left) a change is
// seen this late.
constexpr base::Nanos kPoll = base::kSecond;
constexpr int kMaxUnsettled = 40;

// What a change of content changes: device, inode, size and time of each file that would be read. The bytes
// are read once something here moved. stat() follows symbolic links: one that points elsewhere is another
// inode.
using Mark = std::array<int64_t, 5>;
using Marks = std::map<std::string, Mark>;

Mark MarkOf(const fs::path& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0) return {-1, -1, -1, -1, -1};
  return {static_cast<int64_t>(info.st_dev), static_cast<int64_t>(info.st_ino), info.st_size,
          info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

Marks MarksOf(const std::vector<std::string>& paths) {
  Marks marks;
  for (const auto& path : paths) {
    std::error_code error;
    if (!fs::is_directory(path, error)) {
      marks[path] = MarkOf(path);
      continue;
    }
    // The folder's own mark is not taken: it changes with files that do not matter.
    marks[path] = {};
    for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
      if (api::IsManifestName(it->path().filename().string()))
        marks[it->path().string()] = MarkOf(it->path());
    }
  }
  return marks;
}

bool CanBeReadAgain(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  return path != "-" && (!fs::exists(status) || fs::is_regular_file(status) || fs::is_directory(status));
}

// The folders in which something happens when `path` changes. Not the file itself: when it is replaced by a
// rename, it is another inode.
std::set<std::string> FoldersOf(const std::string& path) {
  std::set<std::string> folders;
  std::error_code error;
  if (fs::is_directory(path, error)) folders.insert(path);
  const fs::path parent = fs::path(path).parent_path();
  folders.insert(parent.empty() ? "." : parent.string());
  // Where a symbolic link leads, changes are seen at once too.
  const fs::path target = fs::canonical(path, error);
  if (!error) folders.insert(target.parent_path().string());
  return folders;
}

}  // namespace

// Runs on the thread of its own; only `deliver` goes to the owner's loop.
struct FileSource::Impl : std::enable_shared_from_this<FileSource::Impl> {
  Impl(std::vector<std::string> p, std::function<void(api::LoadResult)> d, base::Nanos s, api::LoadOptions l,
       Loader r)
      : paths(std::move(p)),
        deliver(std::move(d)),
        settle(s),
        load(std::move(l)),
        loader(std::move(r)),
        inotify(thread.loop().io()),
        poll(thread.loop()),
        settling(thread.loop()) {
    load.only_files = true;
    if (!loader) {
      loader = [](const std::vector<std::string>& files, const api::LoadOptions& options) {
        return api::LoadManifests(files, options);
      };
    }
  }

  void Begin(std::optional<uint64_t> known) {
    if (!std::all_of(paths.begin(), paths.end(), CanBeReadAgain)) return;
    // Watching begins before reading: what changes in between is seen twice rather than never.
    const int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (fd >= 0) {
      inotify.assign(fd);
      AddWatches();
      WaitForEvents();
    }
    marks = MarksOf(paths);
    fingerprint = known ? *known : loader(paths, load).fingerprint;
    watches = true;
    poll.Every(kPoll, [this] {
      AddWatches();  // a folder that was replaced, a link that leads elsewhere now
      Look();
    });
    if (known) settling.After(0, [this] { Settle(); });
  }

  void LookAgain() {
    if (!watches || std::exchange(unsettled, true)) return;
    settling.After(0, [this] { Settle(); });
  }

  // Adding what is watched already changes nothing.
  void AddWatches() {
    if (!inotify.is_open()) return;
    for (const auto& path : paths) {
      for (const auto& folder : FoldersOf(path)) {
        inotify_add_watch(
            inotify.native_handle(), folder.c_str(),
            IN_CLOSE_WRITE | IN_MODIFY | IN_MOVED_TO | IN_MOVED_FROM | IN_CREATE | IN_DELETE | IN_ONLYDIR);
      }
    }
  }

  void WaitForEvents() {
    inotify.async_wait(inotify.wait_read, [weak = weak_from_this()](const auto& error) {
      const auto self = weak.lock();
      if (self == nullptr || error) return;
      std::array<char, 16384> events;  // which file it was does not matter: all are looked at
      while (::read(self->inotify.native_handle(), events.data(), events.size()) > 0) {
      }
      self->Look();
      self->WaitForEvents();
    });
  }

  // Something may have changed: when it did, wait until it stays as it is.
  void Look() {
    Marks now = MarksOf(paths);
    if (now == marks) return;
    marks = std::move(now);
    // Settle() finds out by itself when this happens while it waits.
    if (std::exchange(unsettled, true)) {
      moved = true;
      return;
    }
    settling.After(settle, [this] { Settle(); });
  }

  void Settle() {
    Marks now = MarksOf(paths);
    const bool still = now == marks && !std::exchange(moved, false);
    marks = std::move(now);
    if (!still && ++rounds < kMaxUnsettled) {
      unsettled = true;
      settling.After(settle, [this] { Settle(); });
      return;
    }
    rounds = 0;
    unsettled = false;
    api::LoadResult result = loader(paths, load);
    if (result.fingerprint == fingerprint) return;
    fingerprint = result.fingerprint;
    deliver(std::move(result));
  }

  net::LoopThread thread{"files"};  // first, so that what uses its loop goes before it
  std::vector<std::string> paths;
  std::function<void(api::LoadResult)> deliver;
  base::Nanos settle;
  api::LoadOptions load;
  Loader loader;
  boost::asio::posix::stream_descriptor inotify;
  net::Timer poll;
  net::Timer settling;
  Marks marks;
  uint64_t fingerprint = 0;
  bool watches = false;
  bool unsettled = false;  // settling is set
  bool moved = false;      // marks changed since it was set
  int rounds = 0;
};

FileSource::FileSource(net::Loop& loop, std::vector<std::string> paths, Changed changed, base::Nanos settle,
                       std::optional<uint64_t> known, const api::LoadOptions& load, Loader loader)
    : alive_(std::make_shared<bool>(true)) {
  auto deliver = [home = &loop, alive = alive_,
                  call = std::make_shared<const Changed>(std::move(changed))](api::LoadResult result) {
    const auto kept = std::make_shared<const api::LoadResult>(std::move(result));
    home->Post([alive, call, kept] {
      if (*alive) (*call)(*kept);
    });
  };
  impl_ = std::make_shared<Impl>(std::move(paths), std::move(deliver), settle, load, std::move(loader));
  std::promise<void> begun;
  impl_->thread.loop().Post([&] {
    impl_->Begin(known);
    begun.set_value();
  });
  begun.get_future().wait();
}

FileSource::~FileSource() {
  *alive_ = false;
  std::promise<void> ended;
  impl_->thread.loop().Post([&] {
    impl_->poll.Cancel();
    impl_->settling.Cancel();
    boost::system::error_code ignored;
    impl_->inotify.close(ignored);
    ended.set_value();
  });
  ended.get_future().wait();
  impl_->thread.Join();
}

void FileSource::LookAgain() {
  impl_->thread.loop().Post([impl = impl_.get()] { impl->LookAgain(); });
}

}  // namespace fairway::sources
