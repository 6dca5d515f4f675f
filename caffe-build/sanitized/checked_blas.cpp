// OpenBLAS is the system's and not compiled with AddressSanitizer, which so sees nothing of what it reads and writes.
// These stand before the functions that Caffe calls in single precision (the linker's --wrap), and have AddressSanitizer
// look at all elements from the first to the last of every vector and matrix.

#include <cblas.h>
#include <sanitizer/asan_interface.h>

#include <cstddef>
#include <cstdlib>

namespace {

void check(const float* begin, std::ptrdiff_t elements) {
  if (elements <= 0) return;
  void* const poisoned = __asan_region_is_poisoned(const_cast<float*>(begin), elements * sizeof(float));
  if (poisoned) *static_cast<volatile char*>(poisoned);  // which it reports
}

void check_vector(const float* x, int n, int increment) {
  // With a negative increment the vector's first element is its last in memory: either way it begins at x.
  if (n > 0) check(x, static_cast<std::ptrdiff_t>(n - 1) * std::abs(increment) + 1);
}

void check_matrix(const float* a, int rows, int columns, int leading) {
  if (rows > 0 && columns > 0) check(a, static_cast<std::ptrdiff_t>(rows - 1) * leading + columns);
}

// Caffe's matrices are row by row.
void check_matrix(const float* a, CBLAS_TRANSPOSE transposed, int rows, int columns, int leading) {
  if (transposed == CblasNoTrans) {
    check_matrix(a, rows, columns, leading);
  } else {
    check_matrix(a, columns, rows, leading);
  }
}

}  // namespace

extern "C" {

decltype(cblas_sgemm) __real_cblas_sgemm;
decltype(cblas_sgemv) __real_cblas_sgemv;
decltype(cblas_saxpy) __real_cblas_saxpy;
decltype(cblas_saxpby) __real_cblas_saxpby;
decltype(cblas_sscal) __real_cblas_sscal;
decltype(cblas_scopy) __real_cblas_scopy;
decltype(cblas_sdot) __real_cblas_sdot;
decltype(cblas_sasum) __real_cblas_sasum;

void __wrap_cblas_sgemm(CBLAS_ORDER order, CBLAS_TRANSPOSE transposed_a, CBLAS_TRANSPOSE transposed_b, int m, int n,
                        int k, float alpha, const float* a, int lda, const float* b, int ldb, float beta, float* c,
                        int ldc) {
  check_matrix(a, transposed_a, m, k, lda);
  check_matrix(b, transposed_b, k, n, ldb);
  check_matrix(c, m, n, ldc);
  __real_cblas_sgemm(order, transposed_a, transposed_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void __wrap_cblas_sgemv(CBLAS_ORDER order, CBLAS_TRANSPOSE transposed, int m, int n, float alpha, const float* a,
                        int lda, const float* x, int incx, float beta, float* y, int incy) {
  check_matrix(a, m, n, lda);
  check_vector(x, transposed == CblasNoTrans ? n : m, incx);
  check_vector(y, transposed == CblasNoTrans ? m : n, incy);
  __real_cblas_sgemv(order, transposed, m, n, alpha, a, lda, x, incx, beta, y, incy);
}

void __wrap_cblas_saxpy(int n, float alpha, const float* x, int incx, float* y, int incy) {
  check_vector(x, n, incx);
  check_vector(y, n, incy);
  __real_cblas_saxpy(n, alpha, x, incx, y, incy);
}

void __wrap_cblas_saxpby(int n, float alpha, const float* x, int incx, float beta, float* y, int incy) {
  check_vector(x, n, incx);
  check_vector(y, n, incy);
  __real_cblas_saxpby(n, alpha, x, incx, beta, y, incy);
}

void __wrap_cblas_sscal(int n, float alpha, float* x, int incx) {
  check_vector(x, n, incx);
  __real_cblas_sscal(n, alpha, x, incx);
}

void __wrap_cblas_scopy(int n, const float* x, int incx, float* y, int incy) {
  check_vector(x, n, incx);
  check_vector(y, n, incy);
  __real_cblas_scopy(n, x, incx, y, incy);
}

float __wrap_cblas_sdot(int n, const float* x, int incx, const float* y, int incy) {
  check_vector(x, n, incx);
  check_vector(y, n, incy);
  return __real_cblas_sdot(n, x, incx, y, incy);
}

float __wrap_cblas_sasum(int n, const float* x, int incx) {
  check_vector(x, n, incx);
  return __real_cblas_sasum(n, x, incx);
}

}  // extern "C"
