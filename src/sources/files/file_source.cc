#include "sources/files/file_source.h"

#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <utility>

namespace fairway::sources {
namespace {

namespace fs = std::filesystem;

// Where inotify does not reach (network file systems, no watches left) a change is seen this late.
constexpr base::Nanos kPoll = base::kSecond;

bool IsManifest(const fs::path& path) {
  const std::string ending = path.extension().string();
  return ending == ".yaml" || ending == ".yml" || ending == ".json";
}

// What a change of content changes: name, inode, size and time of each file that would be read. Not the
// bytes: they are read once something here moved.
using Marks = std::map<std::string, std::array<int64_t, 3>>;

void Mark(const fs::path& path, Marks& marks) {
  std::error_code error;
  const auto size = static_cast<int64_t>(fs::file_size(path, error));
  const int64_t time = fs::last_write_time(path, error).time_since_epoch().count();
  // A symbolic link that points elsewhere is another file, even with the same size and time.
  const fs::path target = fs::canonical(path, error);
  marks[path.string()] = {size, time, static_cast<int64_t>(std::hash<std::string>{}(target.string()))};
}

Marks MarksOf(const std::vector<std::string>& paths) {
  Marks marks;
  for (const auto& path : paths) {
    std::error_code error;
    if (!fs::is_directory(path, error)) {
      Mark(path, marks);
      continue;
    }
    for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
      if (IsManifest(it->path())) Mark(it->path(), marks);
    }
  }
  return marks;
}

// The bytes themselves, to tell a touched file from a changed one.
std::string ContentOf(const Marks& marks) {
  std::string content;
  for (const auto& [name, mark] : marks) {
    std::ifstream file(name, std::ios::binary);
    content += name;
    content += file ? '\1' : '\2';
    content.append(std::istreambuf_iterator<char>(file), {});
    content += '\0';
  }
  return content;
}

}  // namespace

struct FileSource::Impl : std::enable_shared_from_this<FileSource::Impl> {
  Impl(net::Loop& loop, std::vector<std::string> p, Changed c, base::Nanos s)
      : paths(std::move(p)),
        changed(std::move(c)),
        settle(s),
        inotify(loop.io()),
        poll(loop),
        settling(loop) {}

  void Begin() {
    marks = MarksOf(paths);
    content = std::hash<std::string>{}(ContentOf(marks));
    const int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (fd >= 0) {
      // The folders, not the files: a file that is replaced by a rename is another inode.
      for (const auto& path : paths) {
        std::error_code error;
        const bool folder = fs::is_directory(path, error);
        const fs::path parent = fs::path(path).parent_path();
        const std::string watched = folder ? path : (parent.empty() ? "." : parent.string());
        inotify_add_watch(fd, watched.c_str(),
                          IN_CLOSE_WRITE | IN_MODIFY | IN_MOVED_TO | IN_MOVED_FROM | IN_CREATE | IN_DELETE);
      }
      inotify.assign(fd);
      WaitForEvents();
    }
    poll.Every(kPoll, [this] { Look(); });
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
    settling.After(settle, [this] { Settle(); });
  }

  void Settle() {
    Marks now = MarksOf(paths);
    if (now != marks) {
      marks = std::move(now);
      settling.After(settle, [this] { Settle(); });
      return;
    }
    const size_t read = std::hash<std::string>{}(ContentOf(marks));
    if (read == content) return;
    content = read;
    changed(api::LoadManifests(paths));
  }

  std::vector<std::string> paths;
  Changed changed;
  base::Nanos settle;
  boost::asio::posix::stream_descriptor inotify;
  net::Timer poll;
  net::Timer settling;
  Marks marks;
  size_t content = 0;
};

FileSource::FileSource(net::Loop& loop, std::vector<std::string> paths, Changed changed, base::Nanos settle)
    : impl_(std::make_shared<Impl>(loop, std::move(paths), std::move(changed), settle)) {
  impl_->Begin();
}

FileSource::~FileSource() {
  impl_->poll.Cancel();
  impl_->settling.Cancel();
  boost::system::error_code ignored;
  impl_->inotify.close(ignored);
}

}  // namespace fairway::sources
