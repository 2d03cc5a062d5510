# `cmake --install`, and the packages that tools/package makes with CPack: a .deb (preset deb), which links with Debian's libraries
# and says so, and a .tar.gz (preset portable), which needs glibc alone.
include(GNUInstallDirs)

# Only what is installed is built for a package; tests are not.
set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)

# /etc/fairway under /usr, etc/fairway in the folder that a .tar.gz unpacks to.
if(FAIRWAY_PORTABLE)
  set(configuration etc/fairway)
else()
  set(configuration ${CMAKE_INSTALL_FULL_SYSCONFDIR}/fairway)
endif()

install(TARGETS fairway RUNTIME)
# libfairway_envoy-VERSION.so, which Envoy opens by its path; `fairway up` looks there.
install(TARGETS fairway_envoy LIBRARY DESTINATION lib/fairway)

# Debian wants it compressed; everybody can read it so.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS docs/man/fairway.1)
execute_process(COMMAND gzip -9nc ${PROJECT_SOURCE_DIR}/docs/man/fairway.1 OUTPUT_FILE ${PROJECT_BINARY_DIR}/fairway.1.gz
  COMMAND_ERROR_IS_FATAL ANY)
install(FILES ${PROJECT_BINARY_DIR}/fairway.1.gz DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES README.md CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY examples DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR} PATTERN man EXCLUDE)
install(DIRECTORY deploy/config/ DESTINATION ${configuration})
# Not below the libraries' folder, which may have the machine's architecture in it.
install(FILES deploy/systemd/fairway-epp.service DESTINATION lib/systemd/system)
if(FAIRWAY_PORTABLE)
  install(FILES LICENSE DESTINATION .)
else()
  install(FILES deploy/debian/copyright DESTINATION ${CMAKE_INSTALL_DOCDIR})
endif()

set(CPACK_PACKAGE_NAME fairway)
set(CPACK_PACKAGE_VENDOR "The Fairway authors")
set(CPACK_PACKAGE_CONTACT "The Fairway authors <fairway@example.invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "endpoint picker for large language model servers behind Envoy")
set(CPACK_VERBATIM_VARIABLES ON)
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_DIRECTORY ${PROJECT_BINARY_DIR}/packages)
if(FAIRWAY_PORTABLE)
  set(CPACK_GENERATOR TGZ)
  string(TOLOWER ${CMAKE_SYSTEM_NAME} system)
  set(CPACK_PACKAGE_FILE_NAME fairway-${PROJECT_VERSION}-${system}-${CMAKE_SYSTEM_PROCESSOR})
else()
  set(CPACK_GENERATOR DEB)
  set(CPACK_SET_DESTDIR ON)
  set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
  set(CPACK_DEBIAN_PACKAGE_SECTION net)
  set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
  # One that reads its man page or checks certificates of others has these anyway.
  set(CPACK_DEBIAN_PACKAGE_RECOMMENDS ca-certificates)
  set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
  set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${PROJECT_SOURCE_DIR}/deploy/debian/conffiles
    ${PROJECT_SOURCE_DIR}/deploy/debian/postinst ${PROJECT_SOURCE_DIR}/deploy/debian/prerm ${PROJECT_SOURCE_DIR}/deploy/debian/postrm)
endif()
include(CPack)
