#include "net/tls_files.h"

#include <sys/stat.h>

#include <utility>

namespace fairway::net {

base::Result<std::unique_ptr<TlsFiles>> TlsFiles::Load(std::string cert_file, std::string key_file,
                                                       TlsOptions options) {
  std::unique_ptr<TlsFiles> files(
      new TlsFiles(std::move(cert_file), std::move(key_file), std::move(options)));
  files->versions_ = files->VersionsNow();  // before reading: a change in between is seen
  auto context = LoadTlsServer(files->cert_file_, files->key_file_, files->options_);
  if (!context) return tl::make_unexpected(context.error());
  files->context_ = std::move(*context);
  return files;
}

TlsFiles::Version TlsFiles::VersionOf(const std::string& path) {
  struct stat info{};
  if (path.empty() || ::stat(path.c_str(), &info) != 0) return {};
  return {static_cast<int64_t>(info.st_ino), info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

TlsFiles::Versions TlsFiles::VersionsNow() const {
  return {VersionOf(cert_file_), VersionOf(key_file_), VersionOf(options_.client_ca_file)};
}

void TlsFiles::Follow(Loop& loop, const base::Log& log, std::function<void(const TlsContext&)> changed,
                      base::Nanos poll) {
  log_ = log;
  changed_ = std::move(changed);
  timer_ = std::make_unique<Timer>(loop);
  timer_->Every(poll, [this] { Look(); });
}

void TlsFiles::Look() {
  const Versions now = VersionsNow();
  if (now == versions_) return;
  // They may be written one after the other: what does not go together is tried again until it does.
  auto context = LoadTlsServer(cert_file_, key_file_, options_);
  if (!context) {
    if (!std::exchange(failed_, true))
      log_.Warn("certificate not reloaded, the old one stays", {{"error", context.error().message}});
    return;
  }
  failed_ = false;
  versions_ = now;
  context_ = std::move(*context);
  log_.Info("certificate reloaded", {{"file", cert_file_}});
  changed_(context_);
}

}  // namespace fairway::net
