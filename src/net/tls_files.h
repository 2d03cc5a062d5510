// A server's certificate and key in files that change while it serves.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "net/loop.h"
#include "net/tls.h"

namespace fairway::net {

// Made on any thread; from Follow on owned by the loop's.
class TlsFiles {
 public:
  // The error names the file and what is wrong with it.
  static base::Result<std::unique_ptr<TlsFiles>> Load(std::string cert_file, std::string key_file,
                                                      TlsOptions options);

  const TlsContext& context() const { return context_; }

  // Looks at the files each `poll`. `changed` gets a new context when certificate, key and the authority of
  // clients go together again; until then, and when they are broken, the old one stays, which is logged once.
  // The log is kept by value.
  void Follow(Loop& loop, const base::Log& log, std::function<void(const TlsContext&)> changed,
              base::Nanos poll = base::kSecond);

 private:
  using Version = std::array<int64_t, 4>;  // inode, size, seconds, nanoseconds
  using Versions = std::array<Version, 3>;

  TlsFiles(std::string cert_file, std::string key_file, TlsOptions options)
      : cert_file_(std::move(cert_file)), key_file_(std::move(key_file)), options_(std::move(options)) {}
  static Version VersionOf(const std::string& path);
  Versions VersionsNow() const;
  void Look();

  const std::string cert_file_;
  const std::string key_file_;
  const TlsOptions options_;
  TlsContext context_;
  Versions versions_{};
  base::Log log_;
  std::function<void(const TlsContext&)> changed_;
  bool failed_ = false;
  std::unique_ptr<Timer> timer_;
};

}  // namespace fairway::net
