// The API server as reflectors see it: how to connect to it and with which credentials, both as they are now.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "net/http_stream.h"
#include "sources/kubernetes/client_config.h"

namespace fairway::sources::kubernetes {

// Owned by the control loop. Files are read on it: they are small, local and read once per request.
class ApiServer {
 public:
  // The error says which certificate, key or token cannot be used. `log`, which outlives the server, gets a
  // line for each certificate of a bundle that cannot be read and was skipped; null: nobody does.
  static base::Result<std::unique_ptr<ApiServer>> Create(ClientConfig config, const base::Log* log = nullptr);

  // What to connect with. `generation` moves when certificates changed: a connection of an older one still
  // works, but the next should be a new one. While files are broken the last good state is given.
  const net::HttpStreamOptions& Connection(uint64_t& generation);

  // Accept and Authorization. While the token's file is broken the last good token is given.
  std::vector<std::pair<std::string, std::string>> Headers();

  // `path` as this server wants it.
  std::string Target(const std::string& path) const { return config_.path_prefix + path; }
  const ClientConfig& config() const { return config_; }
  // What keeps a changed file from being used; "" when nothing does.
  const std::string& problem() const { return problem_; }
  std::string name() const;  // "127.0.0.1:6443"

 private:
  ApiServer(ClientConfig config, const base::Log* log) : config_(std::move(config)), log_(log) {}
  base::Result<void> Reload();

  const ClientConfig config_;
  const base::Log* const log_;
  net::HttpStreamOptions connection_;
  uint64_t generation_ = 0;
  std::string loaded_;  // what connection_.tls was made of
  std::string token_;
  std::string problem_;
};

}  // namespace fairway::sources::kubernetes
