/* Whether MPI takes pointers to the memory of devices, as far as the library tells: by an extension
 * of Open MPI or of MPICH. */

#include MPI4TCH_HEADER

#if defined(OPEN_MPI) && defined(__has_include)
#if __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif
#endif

/* The numbers are those of `Devices` in src/devices.rs. */
enum { CUDA, ROCM, LEVEL_ZERO };

#ifdef MPIX_GPU_SUPPORT_CUDA
static int supports(int type) {
  int supported = 0;
  return MPIX_GPU_query_support(type, &supported) == MPI_SUCCESS && supported;
}
#endif

int mpi4tch_takes_pointers_to(int devices) {
  switch (devices) {
#ifdef MPIX_GPU_SUPPORT_CUDA
    case CUDA:
      return supports(MPIX_GPU_SUPPORT_CUDA);
#elif defined(OMPI_HAVE_MPI_EXT_CUDA) && OMPI_HAVE_MPI_EXT_CUDA
    case CUDA:
      return MPIX_Query_cuda_support();
#endif
#ifdef MPIX_GPU_SUPPORT_HIP
    case ROCM:
      return supports(MPIX_GPU_SUPPORT_HIP);
#elif defined(OMPI_HAVE_MPI_EXT_ROCM) && OMPI_HAVE_MPI_EXT_ROCM
    case ROCM:
      return MPIX_Query_rocm_support();
#endif
#ifdef MPIX_GPU_SUPPORT_ZE
    case LEVEL_ZERO:
      return supports(MPIX_GPU_SUPPORT_ZE);
#endif
    default:
      return 0;
  }
}
