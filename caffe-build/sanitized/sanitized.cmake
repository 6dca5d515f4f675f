# Included by CMakeLists.txt's project() where build_sanitized.py builds: what that build has more. As in the
# ordinary build, Caffe's own debugging checks are off.
set(CMAKE_CXX_FLAGS "-O1 -g1 -fno-omit-frame-pointer -DNDEBUG -D_GLIBCXX_ASSERTIONS")
# Dividing a float by zero is defined by IEEE 754, and layers do it; a cast to an int that cannot hold it is not.
string(APPEND CMAKE_CXX_FLAGS " -fsanitize=address,undefined,float-cast-overflow")

function(check_blas)
  target_sources(_caffe PRIVATE "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/checked_blas.cpp")
  set_source_files_properties("${CMAKE_CURRENT_FUNCTION_LIST_DIR}/checked_blas.cpp"
    PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  foreach(name sgemm sgemv saxpy saxpby sscal scopy sdot sasum)
    target_link_options(_caffe PRIVATE "LINKER:--wrap=cblas_${name}")
  endforeach()
endfunction()
cmake_language(DEFER CALL check_blas)
