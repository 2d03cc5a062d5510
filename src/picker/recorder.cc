#include "picker/recorder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <utility>

#include "routing/decision_json.h"

namespace fairway::picker {
namespace {

// One file and the one before it.
class RotatingFile {
 public:
  RotatingFile(std::string path, size_t max_bytes, std::string header)
      : path_(std::move(path)), max_bytes_(max_bytes), header_(std::move(header)) {}
  RotatingFile(const RotatingFile&) = delete;
  RotatingFile& operator=(const RotatingFile&) = delete;
  ~RotatingFile() { Close(); }

  // Puts the file that is there aside and begins a new one. "": it did; else what went wrong.
  std::string Begin() {
    Close();
    struct stat there{};
    const bool is_there = ::stat(path_.c_str(), &there) == 0;
    if (is_there && !S_ISREG(there.st_mode)) return "is no file";
    if (is_there && there.st_size > 0 && ::rename(path_.c_str(), (path_ + ".1").c_str()) != 0)
      return std::string("cannot be renamed: ") + std::strerror(errno);
    descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0600);
    if (descriptor_ < 0) return std::string("cannot be written: ") + std::strerror(errno);
    size_ = 0;
    return WriteAll(header_) ? "" : std::string("cannot be written: ") + std::strerror(errno);
  }

  bool Write(std::string_view text) {
    if (size_ + text.size() > max_bytes_ || descriptor_ < 0) {
      if (header_.size() + text.size() > max_bytes_ || !Begin().empty()) return false;
    }
    return WriteAll(text);
  }

 private:
  void Close() {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = -1;
  }
  // Whole lines only: what a full disk took of one is taken back.
  bool WriteAll(std::string_view text) {
    const size_t before = size_;
    while (!text.empty()) {
      const ssize_t n = ::write(descriptor_, text.data(), text.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        size_ = before;
        if (::ftruncate(descriptor_, static_cast<off_t>(size_)) != 0 ||
            ::lseek(descriptor_, static_cast<off_t>(size_), SEEK_SET) < 0)
          Close();
        return false;
      }
      size_ += static_cast<size_t>(n);
      text.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }

  const std::string path_;
  const size_t max_bytes_;
  const std::string header_;
  int descriptor_ = -1;
  size_t size_ = 0;
};

}  // namespace

base::Result<std::unique_ptr<DecisionRecorder>> DecisionRecorder::Open(
    const Options& options, const scheduling::SchedulerOptions& decides_by) {
  const auto file =
      std::make_shared<RotatingFile>(options.file, options.max_bytes, routing::RecordHeader(decides_by));
  if (const std::string wrong = file->Begin(); !wrong.empty())
    return base::Fail(base::ErrorCode::kIo, "the record " + options.file + " " + wrong);
  return std::unique_ptr<DecisionRecorder>(
      new DecisionRecorder(options, [file](std::string_view text) { return file->Write(text); }));
}

void DecisionRecorder::Add(const std::shared_ptr<const routing::Decision>& decision) {
  writer_.WriteLater([decision] { return routing::RecordLine(*decision); }, decision->bytes());
}

}  // namespace fairway::picker
